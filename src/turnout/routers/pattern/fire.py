"""FIRE: a learned function of relative distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("fire")
class FirePattern(Pattern):
    """Score + MLP(psi(t - s) / psi(max(t, L)))_h, psi(x) = log(1 + |c x|), c and L learned (Li et al. 2023).

    Args:
        hidden: width of the MLP 1 -> hidden -> H, >= 1.
        threshold: L at first, in tokens, > 0; before it the distance is not relative to the position.
        c: at first, > 0.
    Cost: O(S · T · hidden) a layer, once a batch.
    """

    def __init__(self, context: PatternContext, *, hidden: int = 32, threshold: float = 512.0, c: float = 0.1) -> None:
        super().__init__(context)
        if hidden < 1 or not threshold > 0 or not c > 0:
            raise ConfigError(
                f"pattern fire: hidden={hidden}, threshold={threshold}, c={c}; expected hidden >= 1, threshold, c > 0"
            )
        self.first, self.second = nn.Linear(1, hidden), nn.Linear(hidden, context.heads)
        self.c = nn.Parameter(torch.tensor(float(c)))
        self.threshold, self.multiplier = float(threshold), nn.Parameter(torch.ones(()))

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        number = torch.float64 if x.dtype == torch.float64 else torch.float32

        def psi(distance: Tensor) -> Tensor:
            return torch.log1p((self.c.to(number) * distance).abs())

        def bias(rows: Tensor, keys: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                least = (self.multiplier.to(number) * self.threshold).abs()
                distance = (rows - keys).clamp(min=0).to(number)
                share = psi(distance) / (psi(torch.maximum(rows.to(number), least)) + 1e-6)
                inside = nn.functional.linear(
                    share[..., None], self.first.weight.to(number), self.first.bias.to(number)
                )
                out = nn.functional.linear(inside.relu(), self.second.weight.to(number), self.second.bias.to(number))
                return out.movedim(-1, 0)

        return Reach(bias=bias)
