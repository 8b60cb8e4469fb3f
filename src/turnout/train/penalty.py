"""The cost of open gates, as a differentiable number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.routers.query import Route
from turnout.train.config import LOG_USAGE, PENALTIES

LEAK = 0.02


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


def penalty(routes: list[Route | None], kind: str, cost: Tensor, quadratic: Tensor, target: Tensor) -> Tensor:
    """What is added to the task loss.

    per_gate         cost · n                                    n = expected open gates per sequence
    log_gate         cost · sum of -log(1 - p)                   the same where p is small; see below
    mean_gate        cost · u                                    u = n / slots
    log_usage        cost · x + quadratic · x^2                  x = log(u / target); the budget's own
    mean_hard_gate   cost · u of the straight-through gates      (Bonsignore 2026)

    A gate without a gradient (a control) adds a constant. Cost O(slots).

    Args:
        kind: one of these.
        cost, quadratic, target: scalars on the model's device; the last two belong to log_usage.
    Raises:
        ConfigError: unknown kind.
    """
    if kind not in (*PENALTIES, LOG_USAGE):
        raise ConfigError(f"penalty {kind!r}{nearest(kind, PENALTIES)}")
    n, slots = open_gates(routes, hard=kind == "mean_hard_gate")
    if slots == 0:
        return torch.zeros_like(cost)
    if kind == "per_gate":
        return cost * n
    if kind == "log_gate":
        return cost * (n + LEAK * _surprise_of_closing(routes))
    mean = n / slots
    if kind != LOG_USAGE:
        return cost * mean
    # A model of which every gate is shut still has a finite log: half a gate in all.
    excess = torch.log(mean.clamp(min=0.5 / slots) / target)
    return cost * excess + quadratic * excess.square()


def _surprise_of_closing(routes: list[Route | None]) -> Tensor:
    """Sum over slots of -log(1 - p), averaged over the batch; from the logit z it is log(1 + e^z), exact at any z."""
    layers = []
    for route in routes:
        if route is None:
            continue
        if route.logit is not None:
            cost = nn.functional.softplus(route.logit.float())
        else:
            cost = -torch.log1p(-route.gate.float().clamp(max=1 - 2.0**-24))
        layers.append(cost.sum() / cost.shape[0])
    return torch.stack(layers).sum()
