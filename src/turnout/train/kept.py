"""A copy of the weights from the last time that all was well, to go back to after a collapse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from turnout.train.optimizers import Optimizer

PREFIX = "kept"


class KeptWeights:
    """Weights, buffers and optimiser moments, copied in place (CUDA graphs hold their addresses).

    Args:
        model, optimizer: what is kept and restored.
    Memory: three copies of the parameters, once something was kept.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.copies: dict[str, Tensor] = {}

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model.{name}", tensor
        for name, param in self.model.named_parameters():
            for key, value in self.optimizer.state.get(param, {}).items():
                yield f"optimizer.{name}.{key}", value

    @torch.no_grad()
    def keep(self) -> None:
        """Copy everything as it is now."""
        self.copies = {name: tensor.detach().clone() for name, tensor in self._live()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copies back, if there are any; optimiser state made since then becomes fresh."""
        if not self.copies:
            return
        for name, tensor in self._live():
            if name in self.copies:
                tensor.copy_(self.copies[name])
            else:
                tensor.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """The copies under names that a checkpoint can hold beside the live ones."""
        return {f"{PREFIX}.{name}": tensor for name, tensor in self.copies.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the copies out of a checkpoint's tensors."""
        start = f"{PREFIX}."
        self.copies = {name[len(start) :]: t.clone() for name, t in tensors.items() if name.startswith(start)}
