"""BM25 over segments of a token sequence: the query is the token itself (and its neighbours)."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, check_segments


@CONTENT_SELECTORS.register("bm25")
class BM25Selector(ContentSelector):
    """s_iu = Σ_{w in query} idf(w) · tf (k1 + 1) / (tf + k1),  idf = log(1 + (U - df + 1/2) / (df + 1/2))

    All segments have the same length, so b drops out. The query is token i and `neighbours` before it. Not learned.

    Args:
        size: tokens of a segment.
        k1: saturation of the term frequency.
        neighbours: tokens before the query that belong to it.
    """

    learned = False
    causal = False

    def __init__(self, context: SelectorContext, *, size: int = 32, k1: float = 1.5, neighbours: int = 0) -> None:
        super().__init__(context)
        check_segments("bm25", context.length, size)
        if k1 <= 0 or neighbours < 0:
            raise ConfigError(f"selector bm25: k1={k1}, neighbours={neighbours}; expected k1 > 0, neighbours >= 0")
        self.unit, self.k1, self.neighbours = size, k1, neighbours

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        segments = tokens.unflatten(1, (self.units, self.unit))
        words = tokens.gather(
            1, (at[..., None] - torch.arange(self.neighbours + 1, device=at.device)).clamp(min=0).flatten(1)
        )
        count = (segments[:, None] == words[:, :, None, None]).sum(-1).to(x.dtype)
        df = (count > 0).sum(-1, keepdim=True)
        idf = torch.log1p((self.units - df + 0.5) / (df + 0.5))
        part = idf * count * (self.k1 + 1) / (count + self.k1)
        return part.unflatten(1, (at.shape[1], -1)).sum(2)
