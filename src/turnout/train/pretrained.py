"""Read a model folder in the Hugging Face layout with torch and safetensors alone.

config.json                       model_type "turnout", the architecture under "model"
model.safetensors                 or shards named by model.safetensors.index.json
tokenizer.json                    byte-level BPE (optional)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from turnout.config import from_dict
from turnout.errors import CheckpointError, ConfigError
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.models.weight_files import shard_names
from turnout.train.checkpoint import check_tensors, load_tensors

PREFIX = "model."


def is_pretrained(path: str | Path) -> bool:
    """Whether a folder holds an exported model."""
    return (Path(path) / "config.json").is_file()


def load_pretrained(folder: str | Path) -> tuple[CausalLM, dict[str, Any]]:
    """The model in evaluation mode on the CPU, and its config.json.

    Raises:
        CheckpointError: no model of this library, a shard is missing, or weights that do not fit the config.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, vocab = config.get("model_type"), config.get("vocab_size")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be read ({error}); expected an exported model"
        ) from error
    if kind != "turnout" or not isinstance(vocab, int):
        raise CheckpointError(
            f"{folder} holds a model of type {kind!r}; expected 'turnout', as turnout export writes it"
        )
    try:
        architecture = from_dict(ModelConfig, config.get("model") or {})
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in _tensors(folder).items()}
    dtype = next(iter(weights.values())).dtype if weights else torch.float32
    model = CausalLM(architecture, vocab=vocab).to(dtype)
    if architecture.tie:
        weights.setdefault("head.weight", weights.get("embed.weight", torch.empty(0)))
    check_tensors(model.state_dict(), weights)
    model.load_state_dict(weights)
    return model.eval(), config


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in shard_names(folder):
        found |= load_tensors(folder / name)[0]
    return found
