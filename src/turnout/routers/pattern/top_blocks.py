"""Content routing by blocks: a row reads its own block and the earlier ones that fit its query best."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window
from turnout.routers.pattern.reach import Reach, TopBlocks


@PATTERNS.register("top_blocks")
class TopBlocksPattern(Pattern):
    """Row t reads its own block and the `keep` whole blocks n before it with the largest sum_h <q_t^h, mean k_n>.

    Mixture of block attention (Lu et al. 2025, arXiv 2502.13189): the selector has no weights of its own; queries and
    keys learn it, because what is chosen is what they attend to. No gradient passes through the choice. Heads that
    share a kv head choose together.

    Args:
        block: tokens b of a block; a power of two from 16 on runs in the GPU kernel.
        keep: earlier blocks a row reads, >= 1.
    Cost: O(b · (keep + 1)) keys a row, and t / b mean keys to choose from.
    """

    def __init__(self, context: PatternContext, *, block: int = 64, keep: int = 3) -> None:
        super().__init__(context)
        if block < 1 or keep < 1:
            raise ConfigError(f"pattern top_blocks: block={block}, keep={keep}; expected both >= 1")
        self.blocks = TopBlocks(size=block, keep=keep)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(blocks=self.blocks)

    def mean_keys(self, length: int) -> float:
        b = self.blocks.size
        total = 0.0
        for m in range(-(-length // b)):
            rows = min(b, length - m * b)
            total += rows * (min(m, self.blocks.keep) * b + (rows + 1) / 2)
        return total / length

    def check_length(self, length: int) -> None:
        check_window("top_blocks", "block · (keep + 1)", self.blocks.size * (self.blocks.keep + 1), length)
