"""Adaptive attention span."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("span")
class SpanPattern(Pattern):
    """Each head learns how far it reads (Sukhbaatar et al. 2019).

        a_ts ∝ m(t - s) exp(score_ts),   m(d) = clamp((ramp + z_h · longest - d) / ramp, 0, 1)
        loss + cost · longest · mean_h z

    z stays in [0, 1]. In evaluation, keys beyond the largest span of the layer are not read.

    Args:
        longest: largest span in tokens, >= 1.
        ramp: width of the soft edge in tokens, >= 1.
        cost: price of a token of span, >= 0.
        start: z at first, in [0, 1].
    """

    def __init__(
        self, context: PatternContext, *, longest: int = 512, ramp: int = 32, cost: float = 1e-5, start: float = 0.5
    ) -> None:
        super().__init__(context)
        if longest < 1 or ramp < 1 or cost < 0 or not 0 <= start <= 1:
            raise ConfigError(
                f"pattern span: longest={longest}, ramp={ramp}, cost={cost}, start={start}; expected longest >= 1, "
                "ramp >= 1, cost >= 0 and 0 <= start <= 1"
            )
        self.longest, self.ramp, self.cost, self.start = longest, ramp, cost, start
        self.z = nn.Parameter(torch.full((context.heads,), float(start)))

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.z.clamp_(0, 1)
        number = torch.float64 if x.dtype == torch.float64 else torch.float32
        edge = self.ramp + self.z.clamp(0, 1).to(number) * self.longest

        def bias(rows: Tensor, keys: Tensor) -> Tensor:
            distance = (rows - keys).clamp(min=0).to(number)
            open_ = ((edge.view(-1, *[1] * distance.ndim) - distance) / self.ramp).clamp(max=1)
            # Where nothing is open the logarithm has no gradient either: inside the operator the weight is 0 there.
            inside = open_ > 0
            return torch.where(inside, torch.where(inside, open_, 1.0).log(), -math.inf)

        # Looking at a parameter waits for the device, which training must not.
        window = None if self.training or not self.z.numel() else math.ceil(float(edge.detach().max()))
        return Reach(bias=bias, window=window)

    def penalty(self) -> Tensor | None:
        return self.cost * self.longest * self.z.mean() if self.cost else None

    def spans(self) -> list[float]:
        """Tokens that each head reads, soft edge included."""
        return (self.ramp + self.z.detach().double().clamp(0, 1) * self.longest).tolist()

    def mean_keys(self, length: int) -> float:
        longest = self.ramp + self.start * self.longest if self.z.is_meta else max(self.spans())
        return keys_in_window(length, math.ceil(longest))

    def check_length(self, length: int) -> None:
        # Heads that see everything get no gradient from what they read.
        check_window("span", "ramp + start · longest", self.ramp + round(self.start * self.longest), length)
