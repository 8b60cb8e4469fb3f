"""Content routing by locality-sensitive hashing: a row reads the latest keys in the bucket of its query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Buckets, Reach


@PATTERNS.register("buckets")
class BucketsPattern(Pattern):
    """Row t reads t - size < s <= t, and in each of `tables` the `keep` latest s <= t - size with h(k_s) = h(q_t).

        h(x) = argmax [x A; -x A],  A a random rotation        (Andoni et al. 2015; Reformer, Kitaev et al. 2020)

    Queries and keys learn which bucket they fall into, because what is chosen is what they attend to; no gradient
    passes through the choice. A kv head asks with the sum of its query heads.

    Args:
        size: window w >= 1.
        keep: keys of a row and table, >= 1; tables: hashes, >= 1. A key that two tables find is read once.
        buckets: of a table, even, 2 .. 2D.
        shift: 1: a key is found by the key before it, as an induction head finds it; 0: by itself.
        seed: of the rotations.
    Cost: O(S · D · buckets) multiply-adds and a sort of S integers for each kv head and table; O(w + tables · keep)
        keys a row.
    """

    # paper: queries and keys stay two projections, and a row looks past its window alone, so that no key counts twice.

    axes: Tensor

    def __init__(
        self, context: PatternContext, *, size: int = 64, keep: int = 8, tables: int = 2, buckets: int = 16,
        shift: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(context)
        if min(size, keep, tables) < 1 or shift not in (0, 1):
            raise ConfigError(
                f"pattern buckets: size={size}, keep={keep}, tables={tables}, shift={shift}; expected size, keep and "
                "tables >= 1, and shift 0 or 1"
            )
        if buckets % 2 or not 2 <= buckets <= 2 * context.head_dim:
            raise ConfigError(
                f"pattern buckets: buckets={buckets}; expected an even number from 2 to {2 * context.head_dim}, twice "
                "the head dim"
            )
        self.size, self.keep, self.tables, self.shift = size, keep, tables, shift
        drawn = torch.randn(
            tables, context.head_dim, context.head_dim, generator=torch.Generator().manual_seed(seed), device="cpu"
        )
        rotations = torch.linalg.qr(drawn)[0][..., : buckets // 2]
        self.register_buffer("axes", rotations, persistent=False)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(window=self.size, chosen=Buckets(axes=self.axes, keep=self.keep, shift=self.shift))

    def mean_keys(self, length: int) -> float:
        chosen = sum(min(self.keep * self.tables, max(0, t + 1 - self.size)) for t in range(length)) / length
        return keys_in_window(length, self.size) + chosen

    def check_length(self, length: int) -> None:
        check_window("buckets", "size + keep · tables", self.size + self.keep * self.tables, length)
