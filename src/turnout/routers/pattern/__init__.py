"""Patterns: which distances a head may read and how much a distance costs, whatever the content."""

from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.reach import Blend, Blocks, Dilation, Prune, Reach

__all__ = ["PATTERNS", "Blend", "Blocks", "Dilation", "Pattern", "PatternContext", "Prune", "Reach"]
