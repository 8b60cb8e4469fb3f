"""Position prior: what can be known without reading a single token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, check_segments


@CONTENT_SELECTORS.register("position")
class PositionSelector(ContentSelector):
    """s_ij = a_j + r_{j-i}: learned tables of place and distance, the position-only control.

    Args:
        size: tokens of a unit; more than 1 is the control of segments, whose place is that of their first token.
    """

    def __init__(self, context: SelectorContext, *, size: int = 1) -> None:
        super().__init__(context)
        if size != 1:
            check_segments("position", context.length, size)
        self.unit = size
        self.place = nn.Parameter(torch.zeros(self.units))
        self.distance = nn.Parameter(torch.zeros(2 * context.length))

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        first = torch.arange(0, self.context.length, self.unit, device=at.device)
        gap = first - at[..., None] + self.context.length
        return self.place + self.distance.index_select(0, gap.flatten()).view_as(gap)
