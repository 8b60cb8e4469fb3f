"""Sliding window."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("window")
class WindowPattern(Pattern):
    """Row t reads t - size < s <= t (Beltagy et al. 2020).

    Args:
        size: w >= 1.
    Cost: O(w) keys a row.
    """

    def __init__(self, context: PatternContext, *, size: int = 128) -> None:
        super().__init__(context)
        if size < 1:
            raise ConfigError(f"pattern window: size={size}; expected >= 1 (1 = the token itself)")
        self.size = size

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(window=self.size)

    def mean_keys(self, length: int) -> float:
        return keys_in_window(length, self.size)

    def check_length(self, length: int) -> None:
        check_window("window", "size", self.size, length)
