"""No pattern: every earlier token is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("full")
class FullPattern(Pattern):
    """Every head reads every earlier token: causal attention as it is."""

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach()
