"""ALiBi."""

from __future__ import annotations

from turnout.errors import ConfigError
from turnout.routers.pattern.base import PATTERNS, PatternContext
from turnout.routers.pattern.decay import ConstantDecay


@PATTERNS.register("alibi")
class AlibiPattern(ConstantDecay):
    """Score - m_h (t - s), m_h = 2^(-8 h / H), h = 1..H (Press et al. 2021): an exponential decay before the softmax.

    Args:
        slope: factor on every m_h, > 0.
        prune: largest share of a row's weight that may be skipped; 0 skips nothing.
        cap: with `prune`, norm to which queries and keys are shortened; none = 6.
    """

    # paper: the formula for any H; the published code interpolates where H is no power of two.

    def __init__(
        self, context: PatternContext, *, slope: float = 1.0, prune: float = 0.0, cap: float | None = None
    ) -> None:
        if not slope > 0:
            raise ConfigError(f"pattern alibi: slope={slope}; expected > 0 (a negative one would grow with distance)")
        total = context.total or context.heads
        heads = range(context.first + 1, context.first + context.heads + 1)
        super().__init__(context, [slope * 2.0 ** (-8 * h / total) for h in heads], prune=prune, cap=cap)
