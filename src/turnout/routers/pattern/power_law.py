"""Power-law decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("power_law")
class PowerLawPattern(Pattern):
    """Weight (1 + (t - s) / scale)^(-alpha_h), alpha_h from `low` to `high` in equal ratios over the heads.

    Args:
        low, high: exponents of the first and the last head, 0 < low <= high.
        scale: distance at which the decay begins, > 0.
    """

    alpha: Tensor

    def __init__(self, context: PatternContext, *, low: float = 0.25, high: float = 2.0, scale: float = 1.0) -> None:
        super().__init__(context)
        if not 0 < low <= high or not scale > 0:
            raise ConfigError(
                f"pattern power_law: low={low}, high={high}, scale={scale}; expected 0 < low <= high, scale > 0"
            )
        steps = max(1, (context.total or context.heads) - 1)
        heads = torch.arange(context.first, context.first + context.heads, dtype=torch.float64) / steps
        self.register_buffer("alpha", low * (high / low) ** heads, persistent=False)
        self.scale = scale

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        alpha = self.alpha.to(dtype)

        def bias(rows: Tensor, keys: Tensor) -> Tensor:
            log_distance = torch.log1p((rows - keys).clamp(min=0).to(dtype) / self.scale)
            return -alpha.view(-1, *[1] * log_distance.ndim) * log_distance

        return Reach(bias=bias)
