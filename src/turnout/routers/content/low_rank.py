"""Low-rank pairwise selector: queries and keys of r dimensions."""

from __future__ import annotations

from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("low_rank")
class LowRankSelector(ContentSelector):
    """s_ij = (U x_i)ᵀ (V x_j) / sqrt(r),  U, V: E -> r.

    Args:
        rank: r; an index over r-dimensional keys serves it.
    Cost: O(T·E·r + Q·T·r).
    """

    def __init__(self, context: SelectorContext, *, rank: int = 16) -> None:
        super().__init__(context)
        if not 1 <= rank <= context.width:
            raise ConfigError(f"selector low_rank: rank={rank}; expected 1..{context.width}")
        self.q, self.k = nn.Linear(context.width, rank, bias=False), nn.Linear(context.width, rank, bias=False)
        self.scale = rank**-0.5

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        return self.q(rows_at(x, at)) @ self.k(x).transpose(1, 2) * self.scale
