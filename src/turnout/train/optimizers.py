"""Optimisers by name: AdamW for all weights, or Muon for matrices inside the blocks beside AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from turnout.train.config import OptimConfig

Named = tuple[str, nn.Parameter]


def build_optimizer(model: nn.Module, config: OptimConfig, *, capturable: bool) -> Optimizer:
    """The optimiser of a config.

    Args:
        capturable: keep the learning rate and step counts on the device, so that a CUDA graph can replay a step.
    """
    options: dict[str, Any] = {
        "weight_decay": config.weight_decay, "betas": (0.9, config.beta2), "fused": True, "capturable": capturable
    }  # fmt: skip
    named = list(model.named_parameters())
    if config.optimizer == "adamw":
        return torch.optim.AdamW(by_rate(named, config, capturable=capturable), **options)
    matrices, rest = split_matrices(named)
    adamw = torch.optim.AdamW(by_rate(rest, config, capturable=capturable), **options)
    # Its update has the root mean square of AdamW's, so that one learning rate serves both (Liu et al. 2025).
    kind = _sharded_muon() if any(hasattr(matrix, "full_tensor") for matrix in matrices) else torch.optim.Muon
    muon = kind(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    for group in muon.param_groups:
        group["factor"] = 1.0
    return Together(adamw, muon)


def _sharded_muon() -> type[torch.optim.Muon]:
    # The import loads torch.distributed.
    from turnout.train.muon import ShardedMuon

    return ShardedMuon


def by_rate(named: Iterable[Named], config: OptimConfig, *, capturable: bool) -> list[dict[str, Any]]:
    """Parameters by the factor on their learning rate; direction routers may have one of their own."""
    own: dict[float, list[nn.Parameter]] = {}
    for name, param in named:
        own.setdefault(config.directions_lr if ".directions." in name else 1.0, []).append(param)

    def rate(param: nn.Parameter) -> Any:
        return torch.tensor(config.lr, device=param.device) if capturable else config.lr

    return [{"params": params, "factor": factor, "lr": rate(params[0])} for factor, params in own.items()]


def split_matrices(named: Iterable[Named]) -> tuple[list[nn.Parameter], list[Named]]:
    """Matrices of the blocks, whose updates Muon makes orthogonal; and everything else: embeddings, norms, routers."""
    matrices, rest = [], []
    for name, param in named:
        # A depthwise kernel [E, K] is a stack of vectors, not a map.
        apart = (".router.", ".directions.", ".pattern.", "local.weight")
        if name.startswith("blocks.") and param.ndim == 2 and not any(part in name for part in apart):
            matrices.append(param)
        else:
            rest.append((name, param))
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
