"""Threshold query router with a capacity held by an EMA: causal at training and decoding alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.gating import Route


@QUERY_ROUTERS.register("threshold")
class ThresholdRouter(QueryRouter):
    """Take a token when its score beats a running quantile of earlier batches.

    s = W x;  z = s - theta;  theta <- decay theta + (1 - decay) quantile_{1 - usage}(s)
                                                                              (Expert-Threshold, 2603.11535)

    theta holds the usage without looking at the rest of the sequence, which top-k over the sequence does. It moves in
    training only, after the batch is decided. The decision is z > 0 in training too, whatever the gate noise: a draw
    with probability sigmoid(z) would open mean sigmoid(z), which is not the fraction that theta holds.

    Args:
        usage: fraction of tokens that pass, in (0, 1).
        decay: of the running threshold, in [0, 1).
        frozen: True keeps W as drawn (the control that asks whether W learnt anything).
    Cost: O(E·G) per token; training adds one k-th-value search over B·T scores.
    """

    threshold: Tensor
    seen: Tensor

    packs = True

    def __init__(
        self, context: RouterContext, *, usage: float = 0.0625, decay: float = 0.99, frozen: bool = False
    ) -> None:
        super().__init__(context)
        if not 0 < usage < 1:
            raise ConfigError(f"router threshold: usage={usage}; expected 0 < usage < 1 (use 'always' or 'never')")
        if not 0 <= decay < 1:
            raise ConfigError(f"router threshold: decay={decay}; expected 0 <= decay < 1")
        self.usage, self.decay = usage, decay
        self.proj = nn.Linear(context.width, context.groups, bias=False)
        self.proj.weight.requires_grad_(not frozen)
        self.register_buffer("threshold", torch.zeros(context.groups))
        self.register_buffer("seen", torch.zeros(()))

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        return self.proj(x), state

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        score, state = self.score(x, state, hint)
        route = self.context.gating.decide(score - self.threshold, replace(mode, sample=False))
        if self.training and torch.is_grad_enabled():
            self._track(score.detach())
        return route, state

    @torch.no_grad()
    def _track(self, score: Tensor) -> None:
        flat = score.float().flatten(0, 1)
        k = min(flat.shape[0], max(1, round((1 - self.usage) * flat.shape[0])))
        quantile = flat.kthvalue(k, dim=0).values
        # The first batch sets the threshold; a zero start would take 1/(1 - decay) steps to forget.
        decay = self.decay * (self.seen > 0)
        self.threshold.mul_(decay).add_(quantile.to(self.threshold.dtype) * (1 - decay))
        self.seen.fill_(1.0)


@QUERY_ROUTERS.register("frozen")
class FrozenRouter(ThresholdRouter):
    """Control: a random projection that never learns, held at `usage` by its running threshold.

    No gradient passes through its gate, neither to W nor to the input: otherwise the layers below would learn to move
    tokens across a fixed W, and the control would route by content after all.
    """

    learned = False

    def __init__(self, context: RouterContext, *, usage: float = 0.0625, decay: float = 0.99) -> None:
        super().__init__(context, usage=usage, decay=decay, frozen=True)

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        return super().score(x.detach(), state, hint)
