"""Rank-1 selector: one fingerprint per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at

QUERIES = ("content", "none", "shuffled", "sign")


@CONTENT_SELECTORS.register("rank1")
class Rank1Selector(ContentSelector):
    """f_i = vᵀ x_i,  s_ij = f_i · f_j.                                            (Basu 2026, p. 10)

    For a fixed query the order of the keys is the order of f_j, reversed if f_i < 0: one sign bit of query content.

    Args:
        query: "content" as published; "none" drops f_i (s_ij = f_j, a control); "shuffled" takes f_i of the next
            sequence in the batch (a control); "sign" replaces it by +1 or -1, the parity of all ids of the sequence
            and of the query's position: a coin that says nothing about the query (a control).
    Cost: O(T·E); inference ranks the fingerprints once for all queries.
    """

    def __init__(self, context: SelectorContext, *, query: str = "content") -> None:
        super().__init__(context)
        if query not in QUERIES:
            raise ConfigError(f"selector rank1: query={query!r}{nearest(query, QUERIES)}")
        self.query = query
        # Another sequence decides, or the end of this one: no model can use that.
        self.causal = query not in ("shuffled", "sign")
        self.v = nn.Linear(context.width, 1, bias=False)

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        keys = self.v(x)[..., 0][:, None]
        if self.query == "none":
            return keys.expand(-1, at.shape[1], -1)
        if self.query == "sign":
            return (1 - 2 * ((tokens.sum(1, keepdim=True) + at) % 2))[..., None] * keys
        queries = self.v(rows_at(x, at))
        return (torch.roll(queries, 1, 0) if self.query == "shuffled" else queries) * keys
