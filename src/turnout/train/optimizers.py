"""Optimisers by name: AdamW for all weights, or Muon for matrices inside the blocks beside AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from turnout.train.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, *, capturable: bool) -> Optimizer:
    """The optimiser of a config.

    Args:
        capturable: keep the learning rate and step counts on the device, so that a CUDA graph can replay a step.
    """
    first = next(model.parameters())
    lr: Any = torch.tensor(config.lr, device=first.device) if capturable else config.lr
    betas = (0.9, config.beta2)
    options: dict[str, Any] = {
        "weight_decay": config.weight_decay, "betas": betas, "fused": True, "capturable": capturable
    }  # fmt: skip
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, **options)
    matrices, rest = split_matrices(model.named_parameters())
    adamw = torch.optim.AdamW(rest, lr=lr, **options)
    # Its update has the root mean square of AdamW's, so that one learning rate serves both (Liu et al. 2025).
    muon = torch.optim.Muon(
        matrices, lr=lr if isinstance(lr, float) else config.lr, weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    return Together(adamw, muon)


def split_matrices(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of the blocks, whose updates Muon makes orthogonal; and everything else: embeddings, norms, routers."""
    matrices, rest = [], []
    for name, param in named:
        inside = name.startswith("blocks.") and param.ndim == 2 and ".router." not in name
        # A depthwise kernel [E, K] is a stack of vectors, not a map.
        (matrices if inside and not name.endswith("local.weight") else rest).append(param)
    return matrices, rest


class Together:
    """Several optimisers, each with parameters of its own, stepped as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        # The groups of the parts themselves, so that a new learning rate reaches them.
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = _States(parts)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


class _States:
    """The states of all parts as one mapping by parameter."""

    def __init__(self, parts: tuple[torch.optim.Optimizer, ...]) -> None:
        self.owner = {p: part for part in parts for group in part.param_groups for p in group["params"]}

    def __contains__(self, param: Tensor) -> bool:
        return param in self.owner[param].state

    def __getitem__(self, param: Tensor) -> dict[str, Any]:
        return self.owner[param].state[param]

    def __setitem__(self, param: Tensor, value: dict[str, Any]) -> None:
        self.owner[param].state[param] = value

    def get(self, param: Tensor, default: Any = None) -> Any:
        return self.owner[param].state.get(param, default)

    def pop(self, param: Tensor, default: Any = None) -> Any:
        return self.owner[param].state.pop(param, default)


Optimizer = torch.optim.Optimizer | Together
