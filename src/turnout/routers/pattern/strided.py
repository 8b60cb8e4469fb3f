"""A window of blocks, and every so many blocks one that all read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window
from turnout.routers.pattern.reach import Blocks, Reach


@PATTERNS.register("strided")
class StridedPattern(Pattern):
    """Row t in block m reads block n <= m if m - n <= near or n mod stride = 0 (Child et al. 2019, in blocks).

    Args:
        block: tokens b of a block; a power of two from 16 on runs in the GPU kernel.
        near: blocks before its own that a row reads, >= 0.
        stride: every stride-th block, counted from the first, is read by all, >= 2.
    Cost: O(b · near + t / stride) keys a row.
    """

    # paper: whole blocks instead of single columns, so that a kernel reads memory in pieces.

    def __init__(self, context: PatternContext, *, block: int = 16, near: int = 3, stride: int = 4) -> None:
        super().__init__(context)
        if block < 1 or near < 0 or stride < 2:
            raise ConfigError(
                f"pattern strided: block={block}, near={near}, stride={stride}; expected block >= 1, near >= 0 and "
                "stride >= 2 (1 reads everything: the pattern 'full')"
            )
        self.blocks = Blocks(size=block, near=near, stride=stride)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(blocks=self.blocks)

    def mean_keys(self, length: int) -> float:
        b = self.blocks
        total = 0.0
        for m in range(-(-length // b.size)):
            rows = min(b.size, length - m * b.size)
            before = sum(m - n <= b.near or n % b.stride == 0 for n in range(m))
            total += rows * (before * b.size + (rows + 1) / 2)
        return total / length

    def check_length(self, length: int) -> None:
        check_window("strided", "block · (near + 2)", self.blocks.size * (self.blocks.near + 2), length)
