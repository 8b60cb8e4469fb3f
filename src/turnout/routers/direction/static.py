"""Static directions: r is learned and the same for every input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.direction.base import DIRECTION_ROUTERS, DirectionContext, DirectionRouter


@DIRECTION_ROUTERS.register("static")
class StaticDirectionRouter(DirectionRouter):
    """r = sigmoid(temperature · z) with z in R^{H x K} learned: a constant linear map, mergeable into Wo. Control.

    Args:
        k: directions a head.
        temperature: > 0; z starts at 0, so r at 0.5.
    """

    def __init__(self, context: DirectionContext, *, k: int = 4, temperature: float = 5.0) -> None:
        super().__init__(context, k=k)
        if not temperature > 0:
            raise ConfigError(f"directions static: temperature={temperature}; expected > 0")
        self.temperature = temperature
        self.logit = nn.Parameter(torch.zeros(context.heads, k))

    def decide(self, source: Tensor, state: Any, rows: Tensor | None) -> tuple[Tensor, Any]:
        return self.constant(torch.sigmoid(self.temperature * self.logit), source, rows), state
