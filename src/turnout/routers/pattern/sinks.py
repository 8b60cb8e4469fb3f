"""Attention sinks and a window."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("sinks")
class SinksPattern(Pattern):
    """Row t reads the first `sinks` positions and t - size < s <= t (Xiao et al. 2023, StreamingLLM).

    Args:
        size: window w >= 1.
        sinks: first positions that stay visible, >= 1.
    Cost: O(w + sinks) keys a row.
    """

    # paper: positions are those of the text, not of the slots of a rolling cache.

    def __init__(self, context: PatternContext, *, size: int = 128, sinks: int = 4) -> None:
        super().__init__(context)
        if size < 1 or sinks < 1:
            raise ConfigError(
                f"pattern sinks: size={size}, sinks={sinks}; expected both >= 1 (without sinks: the pattern 'window')"
            )
        self.size, self.sinks = size, sinks

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(window=self.size, sinks=self.sinks)

    def mean_keys(self, length: int) -> float:
        return keys_in_window(length, self.size, self.sinks)

    def check_length(self, length: int) -> None:
        check_window("sinks", "size + sinks", self.size + self.sinks, length)
