"""Where the parts of a language model are: this library's models, and Hugging Face models by their modules' paths.

Nothing here imports transformers: a model is recognised by the modules that it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import RoutingMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Module paths of one family; those of a block's parts are below the block.

    Attributes:
        blocks, embed, norm, head: of the model.
        attention, projection, mlp, down, norms: of a block: the module that adds to the stream, Wo, the MLP, its last
            linear map, and the two norms.
    """

    blocks: str
    embed: str
    norm: str
    head: str
    attention: str
    projection: str
    mlp: str
    down: str
    norms: tuple[str, str]


TURNOUT = Layout(
    blocks="blocks", embed="embed", norm="norm", head="head", attention="mixer", projection="mixer.attention.out",
    mlp="mlp", down="mlp.down", norms=("mixer_norm", "mlp_norm"),
)  # fmt: skip
HUGGING_FACE = {
    "GPT-2": Layout(
        blocks="transformer.h", embed="transformer.wte", norm="transformer.ln_f", head="lm_head", attention="attn",
        projection="attn.c_proj", mlp="mlp", down="mlp.c_proj", norms=("ln_1", "ln_2"),
    ),
    "Llama": Layout(
        blocks="model.layers", embed="model.embed_tokens", norm="model.norm", head="lm_head", attention="self_attn",
        projection="self_attn.o_proj", mlp="mlp", down="mlp.down_proj",
        norms=("input_layernorm", "post_attention_layernorm"),
    ),
    "GPT-NeoX": Layout(
        blocks="gpt_neox.layers", embed="gpt_neox.embed_in", norm="gpt_neox.final_layer_norm", head="embed_out",
        attention="attention", projection="attention.dense", mlp="mlp", down="mlp.dense_4h_to_h",
        norms=("input_layernorm", "post_attention_layernorm"),
    ),
}  # fmt: skip


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, None where there is none."""
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            return None
    return found if isinstance(found, nn.Module) else None


class Anatomy:
    """The parts of a model and how to run it.

    Args:
        model: a `CausalLM`, or a Hugging Face model of the GPT-2, Llama (Mistral, Qwen, ...) or GPT-NeoX family.
        context: most tokens of a prompt; None takes what the model's own config says, if it says.
    Raises:
        UnsupportedError: another model.
    """

    def __init__(self, model: nn.Module, *, context: int | None = None) -> None:
        inner = getattr(model, "model", None)
        if isinstance(inner, CausalLM):
            # A model of ours in Hugging Face's clothes.
            model = inner
        self.model, self.ours = model, isinstance(model, CausalLM)
        families = {"turnout": TURNOUT} if self.ours else HUGGING_FACE
        fitting = [layout for layout in families.values() if submodule(model, layout.blocks) is not None]
        if not fitting:
            raise UnsupportedError(
                f"{type(model).__name__} has none of the module paths {[x.blocks for x in HUGGING_FACE.values()]}; "
                "expected a CausalLM of this library or a Hugging Face model of the GPT-2, Llama or GPT-NeoX family"
            )
        self.layout = fitting[0]
        self.blocks = list(self.part(self.layout.blocks).children())
        config: Any = getattr(model, "config", None)
        if isinstance(model, CausalLM):
            self.heads: int = model.config.heads
        else:
            self.heads = config.num_attention_heads
            context = context or getattr(config, "max_position_embeddings", None)
        self.context = context

    def part(self, path: str, layer: int | None = None) -> nn.Module:
        """The module at a path, of the model or of one block."""
        found = submodule(self.model if layer is None else self.blocks[layer], path)
        if found is None:
            raise UnsupportedError(f"{type(self.model).__name__} has no {path!r} in {layer=}")
        return found

    def has(self, path: str, layer: int) -> bool:
        """Whether a block has that module."""
        return submodule(self.blocks[layer], path) is not None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def check_layer(self, layer: int) -> int:
        """ConfigError unless the model has that layer."""
        if not 0 <= layer < len(self.blocks):
            raise ConfigError(f"layer {layer} does not exist; this model has layers 0..{len(self.blocks) - 1}")
        return layer

    def check_head(self, head: int) -> int:
        """ConfigError unless a layer has that head."""
        if not 0 <= head < self.heads:
            raise ConfigError(f"head {head} does not exist; every layer of this model has heads 0..{self.heads - 1}")
        return head

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T]; routed layers compute both tracks, so that every value exists.

        Raises:
            ShapeError: not [B, T], or more tokens than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ShapeError(f"tokens {tuple(tokens.shape)}; expected [batch, length] with a token at least")
        if self.context is not None and tokens.shape[1] > self.context:
            raise ShapeError(f"prompt of {tokens.shape[1]} tokens; the context is {self.context}: shorten it")
        tokens = tokens.to(self.device)
        if self.ours:
            return self.model(tokens, mode=RoutingMode(skip=False)).logits
        out = self.model(tokens)
        return getattr(out, "logits", out)

    def unembed(self) -> Tensor:
        """W_U, [V, E]."""
        weight: Any = self.part(self.layout.head).weight
        return weight

    def projection(self, layer: int) -> Tensor:
        """Wo of a layer as [E, H·D], whichever way round its module keeps it."""
        module: Any = self.part(self.layout.projection, layer)
        # Hugging Face's Conv1D holds [in, out].
        return module.weight.T if type(module).__name__ == "Conv1D" else module.weight

    def query_key(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """W_q and W_k of every query head, [H, D, E] each; None for a layer without attention.

        Raises:
            UnsupportedError: attention whose query and key maps are not where a known family has them.
        """
        if self.ours:
            track: Any = getattr(self.blocks[layer].mixer, "attention", None)
            if track is None:
                return None
            return _heads(track.q.weight, track.kv.weight[: track.kv_heads * track.head_dim], track.heads)
        attention: Any = self.part(self.layout.attention, layer)
        if hasattr(attention, "q_proj"):
            return _heads(attention.q_proj.weight, attention.k_proj.weight, self.heads)
        if hasattr(attention, "c_attn"):
            q, k, _ = attention.c_attn.weight.T.chunk(3)
            return _heads(q, k, self.heads)
        if hasattr(attention, "query_key_value"):
            # Head by head: its query, its key, its value.
            q, k, _ = attention.query_key_value.weight.unflatten(0, (self.heads, 3, -1)).unbind(1)
            return q, k
        raise UnsupportedError(
            f"{type(attention).__name__} has none of q_proj, c_attn, query_key_value; expected a known attention"
        )


def _heads(q: Tensor, k: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Rows of W_q and W_k by query head; key heads are repeated for the query heads that share them."""
    q = q.unflatten(0, (heads, -1))
    k = k.unflatten(0, (-1, q.shape[1]))
    return q, k.repeat_interleave(heads // k.shape[0], dim=0)
