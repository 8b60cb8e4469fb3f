"""Random directions: r is drawn once and never learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.routers.direction.base import DIRECTION_ROUTERS, DirectionContext, DirectionRouter


@DIRECTION_ROUTERS.register("random")
class RandomDirectionRouter(DirectionRouter):
    """r ~ U(0, 1) for each layer, head and direction, from the model's seed. Control.

    Args:
        k: directions a head.
        learn: False freezes the directions too, so that nothing about the removal is learned.
    """

    learned = False
    fixed: Tensor

    def __init__(self, context: DirectionContext, *, k: int = 4, learn: bool = True) -> None:
        super().__init__(context, k=k)
        self.vectors.requires_grad_(learn)
        generator = torch.Generator().manual_seed(context.seed * 1009 + context.layer)
        self.register_buffer("fixed", torch.rand(context.heads, k, generator=generator))

    def decide(self, source: Tensor, state: Any, rows: Tensor | None) -> tuple[Tensor, Any]:
        return self.constant(self.fixed, source, rows), state
