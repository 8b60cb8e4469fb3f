"""Content routing by blocks: a row reads its own block and the earlier ones that fit its query best."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_blocks
from turnout.routers.pattern.reach import Reach, TopBlocks


@PATTERNS.register("top_blocks")
class TopBlocksPattern(Pattern):
    """Row t reads its own block, the `near` before it, and the `keep` before those with the largest
    sum_h <q_t^h, mean k_n>.

    Mixture of block attention (Lu et al. 2025, arXiv 2502.13189): the selector has no weights of its own; queries and
    keys learn it, because what is chosen is what they attend to. No gradient passes through the choice. Heads that
    share a kv head choose together.

    Args:
        block: tokens b of a block; a power of two from 16 on runs in the GPU kernel.
        keep: earlier blocks a row reads, >= 1.
        near: blocks before its own that a row always reads, >= 0.
    Cost: O(b · (keep + near + 1)) keys a row, and t / b mean keys to choose from, scored in pieces of rows.
    """

    def __init__(self, context: PatternContext, *, block: int = 64, keep: int = 3, near: int = 0) -> None:
        super().__init__(context)
        if block < 1 or keep < 1 or near < 0:
            raise ConfigError(
                f"pattern top_blocks: block={block}, keep={keep}, near={near}; expected block >= 1, keep >= 1 and "
                "near >= 0"
            )
        self.blocks = TopBlocks(size=block, keep=keep, near=near)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(blocks=self.blocks)

    def mean_keys(self, length: int) -> float:
        return keys_in_blocks(length, self.blocks.size, self.blocks.keep, self.blocks.near)

    def check_length(self, length: int) -> None:
        b = self.blocks
        check_window("top_blocks", "block · (keep + near + 1)", b.size * (b.keep + b.near + 1), length)
