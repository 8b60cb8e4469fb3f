"""KERPLE: a learned power law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("kerple")
class KerplePattern(Pattern):
    """Score - p_h log(1 + a_h (t - s)), p and a learned and >= `least` (Chi et al. 2022, the logarithmic kernel).

    p starts uniform in (0, 2), a in (0, 1).

    Args:
        least: smallest p and a, > 0.
    """

    def __init__(self, context: PatternContext, *, least: float = 0.01) -> None:
        super().__init__(context)
        if not least > 0:
            raise ConfigError(f"pattern kerple: least={least}; expected > 0, so that weights fall with distance")
        self.least = least
        self.p = nn.Parameter(2 * torch.rand(context.heads))
        self.a = nn.Parameter(torch.rand(context.heads))

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        number = torch.float64 if x.dtype == torch.float64 else torch.float32
        p, a = self.p.to(number).clamp(min=self.least), self.a.to(number).clamp(min=self.least)

        def bias(rows: Tensor, keys: Tensor) -> Tensor:
            distance = (rows - keys).clamp(min=0).to(number)
            shape = (-1, *[1] * distance.ndim)
            return -p.view(shape) * torch.log1p(a.view(shape) * distance)

        return Reach(bias=bias)
