"""The cost of open gates, as a differentiable number."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError, nearest
from turnout.routers.query import Route
from turnout.train.config import LOG_USAGE, LOG_USAGE_BY_LAYER, PENALTIES


def open_gates(routes: list[Route | None], *, hard: bool = False) -> tuple[Tensor, int]:
    """Expected open gates per sequence, and how many slots a sequence has.

    n = sum over layers, tokens and groups of p                soft: p = gate probability
                                                              hard: p = mixing weight (its value and gradient)

    Returns:
        (float32 scalar, averaged over the batch; slots per sequence = routed layers · T · G). (0, 0) without routers.
    """
    total: Tensor | None = None
    slots = 0
    for route in routes:
        if route is None:
            continue
        p = route.weight if hard else route.gate
        layer = p.float().sum() / p.shape[0]
        total = layer if total is None else total + layer
        slots += p.shape[1] * p.shape[2]
    return (torch.zeros(()), 0) if total is None else (total, slots)


def penalty(
    routes: list[Route | None], kind: str, cost: Tensor, quadratic: Tensor, target: Tensor, undecided: Tensor
) -> Tensor:
    """What is added to the task loss.

    per_gate         cost · n                                    n = expected open gates per sequence
    mean_gate        cost · u                                    u = n / slots
    log_usage        cost · x + quadratic · x^2                  x = log(u / target); the budget's own
                     + undecided · sum of p (1 - p) / n
    log_usage_by_layer   the same with the mean of x^2 over layers
    mean_hard_gate   cost · u of the straight-through gates      (Bonsignore 2026)

    A gate without a gradient (a control) adds a constant. Cost O(slots).

    Args:
        kind: one of these.
        cost, quadratic, target, undecided: scalars on the model's device; the last three belong to log_usage.
    Raises:
        ConfigError: unknown kind.
    """
    if kind not in (*PENALTIES, LOG_USAGE, LOG_USAGE_BY_LAYER):
        raise ConfigError(f"penalty {kind!r}{nearest(kind, PENALTIES)}")
    n, slots = open_gates(routes, hard=kind == "mean_hard_gate")
    if slots == 0:
        return torch.zeros_like(cost)
    if kind == "per_gate":
        return cost * n
    mean = n / slots
    if kind in PENALTIES:
        return cost * mean
    excess = torch.log(mean.clamp(min=1e-9) / target)
    square = excess.square()
    if kind == LOG_USAGE_BY_LAYER:
        layers = torch.stack([route.gate.float().mean() for route in routes if route is not None])
        square = torch.log(layers.clamp(min=1e-9) / target).square().mean()
    hesitation = sum((r.gate.float() * (1 - r.gate.float())).sum() / r.gate.shape[0] for r in routes if r is not None)
    return cost * excess + quadratic * square + undecided * hesitation / n.detach().clamp(min=1e-9)
