"""EMA-context query router, as in the routed-attention code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.ops.ema import causal_ema
from turnout.routers.mode import RoutingMode
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.gating import Route


@QUERY_ROUTERS.register("ema")
class EMARouter(QueryRouter):
    """Decide from the token and a fixed-decay average of the past.

    c_t = decay c_{t-1} + (1 - decay) x_t,  c_{-1} = 0
    [z0, z1] = W2 GELU(W1 [x_t ; c_t]), 2E -> E -> 2 per group; z = z1 - z0     (Bonsignore 2026, code form)

    Args:
        decay: of the context, in [0, 1); published 0.9.
        bias: added to the initial bias of z1; 0 is the published initialisation.
    Cost: O(E^2) per token. State: c, float [B, E].
    """

    packs = True

    def __init__(self, context: RouterContext, *, decay: float = 0.9, bias: float = 0.0) -> None:
        super().__init__(context)
        if not 0 <= decay < 1:
            raise ConfigError(f"router ema: decay={decay}; expected 0 <= decay < 1")
        self.decay = decay
        width = context.width
        last = nn.Linear(width, 2 * context.groups)
        self.net = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), last)
        last.bias.data.view(context.groups, 2)[:, 1] += bias

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return torch.zeros(batch, self.context.width, device=device, dtype=dtype)

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        average, state = causal_ema(x, self.decay, state)
        return self._logit(x, average), state

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        if mode.starts is None:
            return super().forward(x, mode=mode, state=state, hint=hint)
        average, _ = causal_ema(x, self.decay, starts=mode.starts)
        return self.context.gating.decide(self._logit(x, average), mode), None

    def _logit(self, x: Tensor, average: Tensor) -> Tensor:
        z = self.net(torch.cat((x, average), dim=-1)).unflatten(-1, (self.context.groups, 2))
        return z[..., 1] - z[..., 0]
