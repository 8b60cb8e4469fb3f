"""The control of content routing by blocks: which earlier blocks a row reads is drawn by lot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_share, check_window, keys_in_blocks
from turnout.routers.pattern.reach import BlockLists, Reach


@PATTERNS.register("random_blocks")
class RandomBlocksPattern(Pattern):
    """Row t in block m reads blocks m - near .. m and one block of each of `keep` equal parts of those before them.

    The lot hangs on (t, kv head, part, seed) alone: it is the same in every pass, so that a step reads what the whole
    sequence does, and no block is drawn twice.

    Args:
        block: tokens b of a block; a power of two from 16 on runs in the GPU kernel.
        keep: earlier blocks a row reads, >= 1.
        near: blocks before its own that a row always reads, >= 0.
        share: so many rows, a divisor of `block`, have one lot, that of the first of them.
        seed: of the lots.
    Cost: O(b · (keep + near + 1)) keys a row.
    """

    def __init__(
        self,
        context: PatternContext,
        *,
        block: int = 64,
        keep: int = 3,
        near: int = 0,
        share: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(context)
        if block < 1 or keep < 1 or near < 0:
            raise ConfigError(
                f"pattern random_blocks: block={block}, keep={keep}, near={near}; expected block >= 1, keep >= 1 and "
                "near >= 0"
            )
        check_share("random_blocks", share, block)
        self.block, self.keep, self.near, self.share, self.seed = block, keep, near, share, seed

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        part = torch.arange(self.keep, device=at.device)
        head = torch.arange(self.context.kv_heads, device=at.device)[:, None] + self.context.first
        first = at - at % self.share
        count = (at // self.block - self.near).clamp(min=0)[:, None, None]
        # Division by multiplication, exact up to 2^32 / keep^2 blocks: compiled code knows no other on integers.
        low, high = ((count * p * (2**32 // self.keep + 1)) >> 32 for p in (part, part + 1))
        lot = ((first[:, None, None] * 4099 + head) * 257 + part) * 65_537 + self.seed
        # Two rounds of an integer hash; the sign bit is cut off.
        for factor in (0x9E3779B97F4A7C1, 0x3F58476D1CE4E5B):
            lot = (lot ^ (lot >> 31)) * factor
        drawn = low + ((((lot >> 20) & (2**28 - 1)) * (high - low)) >> 28)
        lists = torch.where(high > low, drawn, -1)[None]
        return Reach(blocks=BlockLists(size=self.block, near=self.near, share=self.share, lists=lists))

    def mean_keys(self, length: int) -> float:
        return keys_in_blocks(length, self.block, self.keep, self.near)

    def check_length(self, length: int) -> None:
        check_window("random_blocks", "block · (keep + near + 1)", self.block * (self.keep + self.near + 1), length)
