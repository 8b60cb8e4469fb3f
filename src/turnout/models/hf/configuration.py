"""`TurnoutConfig`: the library's `ModelConfig` in the shape that Hugging Face expects."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from turnout.config import from_dict, to_dict
from turnout.models.config import ModelConfig

SMALL: dict[str, Any] = {
    "layers": 2, "width": 64, "heads": 2, "local": "conv:kernel=4", "positions": "rope", "form": "llama"
}  # fmt: skip
"""What `TurnoutConfig()` describes: a working model of 100,000 weights on bytes."""


class TurnoutConfig(PreTrainedConfig):
    """Vocabulary, trained length and the architecture.

    Fields of `ModelConfig` may be given directly, `TurnoutConfig(layers=12, routing={"router": "ema"})`, or together as
    `model`; an unknown one inside `model` is an error that names the nearest.

    Attributes:
        model: fields of `ModelConfig` as plain values; what is missing takes its default. None = `SMALL`.
        vocab_size: token ids are 0..vocab_size-1.
        max_position_embeddings: the longest sequence that the model was trained on; longer ones give a warning.
        routing_cost: weight of the mean gate probability in the loss when `labels` are given; 0 = none.
        init_seed: of the initial weights.
        gate_seed: of the gate noise in training.
    """

    model_type = "turnout"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]  # noqa: RUF012

    model: dict | None = None
    vocab_size: int = 256
    max_position_embeddings: int = 1024
    routing_cost: float = 0.0
    init_seed: int = 0
    gate_seed: int = 0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        model = dict(SMALL if self.model is None else self.model) | given
        if self.tie_word_embeddings:
            model["tie"] = True
        checked = from_dict(ModelConfig, model)
        self.model = to_dict(checked)
        self.tie_word_embeddings = checked.tie
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: ModelConfig, **fields: Any) -> TurnoutConfig:
        """The config of an architecture of the library."""
        return cls(model=to_dict(model), **fields)

    @property
    def architecture(self) -> ModelConfig:
        """The library's own config."""
        return from_dict(ModelConfig, self.model or {})

    # The names that code outside of this library looks for.
    @property
    def hidden_size(self) -> int:
        return self.architecture.width

    @property
    def num_hidden_layers(self) -> int:
        return self.architecture.layers

    @property
    def num_attention_heads(self) -> int:
        return self.architecture.heads

    @property
    def num_key_value_heads(self) -> int:
        return self.architecture.n_kv_heads

    @property
    def head_dim(self) -> int:
        return self.architecture.width // self.architecture.heads
