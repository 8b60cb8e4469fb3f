"""Causal language models of other libraries: read from a local folder, and frozen as a source of representations.

B batch, T tokens, D the model's own width, E width of what reads it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from turnout.errors import CheckpointError, ConfigError, DataError
from turnout.models.causal_lm import CausalLM
from turnout.models.hf.loading import check_files, check_loaded


def load_foreign(folder: str | Path, *, twin: bool = False, seed: int = 0) -> nn.Module:
    """A causal language model in evaluation mode, float32, on the CPU.

    Args:
        folder: with config.json and safetensors weights; nothing is downloaded, no pickle and no code is loaded.
        twin: fresh weights of the same architecture instead (the untrained null); then no weights are needed.
        seed: of those.
    Raises:
        DataError: no folder with a config.json, or one that transformers cannot read.
        CheckpointError: weights that are missing or do not fit.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise DataError(f"{path} holds no config.json; expected a local folder of a Hugging Face causal language model")
    try:
        if twin:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).float().eval()
        check_files(path)
        model, info = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        advice = "give a folder that save_pretrained or turnout export wrote"
        raise DataError(f"transformers cannot read {path} as a causal language model: {error}; {advice}") from error
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit its config: {error}") from error
    check_loaded(model, info, str(path), forgiving=False)
    return model.eval()


def hidden_states(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    """The embeddings and the output of every block, each [B, T, D]."""
    own = getattr(model, "model", None)
    if isinstance(own, CausalLM):
        return _own_states(own, tokens)
    with torch.no_grad():
        return list(model(tokens, output_hidden_states=True, use_cache=False).hidden_states)


def _own_states(model: CausalLM, tokens: Tensor) -> list[Tensor]:
    """A model of this library that was exported: its blocks are asked, because its outputs hold no states."""
    states: list[Tensor] = []
    first = model.blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    hooks = [block.register_forward_hook(lambda _, __, out: states.append(out[0])) for block in model.blocks]
    try:
        with torch.no_grad():
            # The head is asked for the last position alone: nobody reads what it says.
            model(tokens, at=tokens.new_full((len(tokens), 1), tokens.shape[1] - 1))
    finally:
        for hook in (first, *hooks):
            hook.remove()
    return states


class FrozenStates(nn.Module):
    """x = W h_layer(ids): one layer of a frozen language model, mapped to width E by the only weights that train.

    Args:
        folder: of the model; width: E.
        vocab: ids that will be asked for, at most the model's own.
        layer: 0 = its embeddings, -1 = the output of its last block.
        twin: random weights of the same shape, from seed 0 whatever the run's: what training gave the model is then
            what the runs differ by.
    """

    def __init__(self, folder: str, width: int, *, vocab: int, layer: int = -1, twin: bool = False) -> None:
        super().__init__()
        # Not a submodule: frozen weights are neither stacked, saved nor trained.
        self._model = (_shared(folder, twin),)
        config: Any = self._model[0].config
        layers = config.num_hidden_layers
        if config.vocab_size < vocab:
            raise ConfigError(f"{folder} knows {config.vocab_size} token ids; the task uses {vocab}")
        if not -layers - 1 <= layer <= layers:
            raise ConfigError(f"layer={layer} of {folder}; expected 0 (embeddings) to {layers}, or -1 for the last")
        self.layer = layer
        self.map = nn.Linear(config.hidden_size, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, E]."""
        states: Tensor = _Read.apply(tokens, self._model[0], self.layer)
        return self.map(states)


class _Read(torch.autograd.Function):
    """States of a frozen model; stacked runs (`torch.func.vmap`) become more sequences. There is no gradient."""

    @staticmethod
    def forward(tokens: Tensor, model: nn.Module, layer: int) -> Tensor:
        return hidden_states(model.to(tokens.device), tokens)[layer]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], tokens: Tensor, model: nn.Module, layer: int) -> Any:
        if in_dims[0] is None:
            return _Read.forward(tokens, model, layer), None
        folded = tokens.movedim(in_dims[0], 0)
        return _Read.forward(folded.flatten(0, 1), model, layer).unflatten(0, folded.shape[:2]), 0


@lru_cache(maxsize=2)
def _shared(folder: str, twin: bool) -> nn.Module:
    """The seeds of a stacked run read one copy."""
    return load_foreign(folder, twin=twin).requires_grad_(False)
