"""Segment selector: one summary per segment of tokens, compared with the query.

B batch, T tokens, Q queries, E width, U segments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.routers.content.base import (
    CONTENT_SELECTORS,
    ContentSelector,
    SelectorContext,
    check_segments,
    rows_at,
)

POOLS = ("mean", "max", "decay")


@CONTENT_SELECTORS.register("segment")
class SegmentSelector(ContentSelector):
    """s_iu = <W_q x_i, pool_{j in u} W_k x_j> / sqrt(E).

    Args:
        size: tokens of a segment; published 32.
        pool: "mean", "max" (per channel), or "decay" (sum with weights 0.9^(end - j), what a recurrent state keeps).
        project: False compares x itself (with random codes: the untrained control).
    """

    def __init__(self, context: SelectorContext, *, size: int = 32, pool: str = "mean", project: bool = True) -> None:
        super().__init__(context)
        check_segments("segment", context.length, size)
        if pool not in POOLS:
            raise ConfigError(f"selector segment: pool={pool!r}{nearest(pool, POOLS)}")
        self.unit, self.pool = size, pool
        width = context.width
        self.q: nn.Module = nn.Linear(width, width, bias=False) if project else nn.Identity()
        self.k: nn.Module = nn.Linear(width, width, bias=False) if project else nn.Identity()
        self.scale = width**-0.5

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        keys = self.k(x).unflatten(1, (self.units, self.unit))
        if self.pool == "max":
            summary = keys.amax(2)
        elif self.pool == "mean":
            summary = keys.mean(2)
        else:
            ages = torch.arange(self.unit - 1, -1, -1, device=x.device, dtype=x.dtype)
            summary = torch.einsum("busd,s->bud", keys, 0.9**ages)
        return self.q(rows_at(x, at)) @ summary.transpose(1, 2) * self.scale
