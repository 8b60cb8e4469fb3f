"""Per-token direction router."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.routers.direction.base import DIRECTION_ROUTERS
from turnout.routers.direction.mlp import MLPDirectionRouter


@DIRECTION_ROUTERS.register("token")
class TokenDirectionRouter(MLPDirectionRouter):
    """r_t = sigmoid(temperature · MLP(x_t)): no pooling, no memory."""

    def pool(self, source: Tensor, state: Any) -> tuple[Tensor, Any]:
        return source, state
