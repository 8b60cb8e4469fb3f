"""Position prior: what can be known without reading a single token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext


@CONTENT_SELECTORS.register("position")
class PositionSelector(ContentSelector):
    """s_ij = a_j + r_{j-i}: learned tables of place and distance, the position-only control."""

    def __init__(self, context: SelectorContext) -> None:
        super().__init__(context)
        self.place = nn.Parameter(torch.zeros(context.length))
        self.distance = nn.Parameter(torch.zeros(2 * context.length))

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        gap = torch.arange(self.context.length, device=at.device) - at[..., None] + self.context.length
        return self.place + self.distance.index_select(0, gap.flatten()).view_as(gap)
