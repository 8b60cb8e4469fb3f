"""The decay of RetNet."""

from __future__ import annotations

import math

from turnout.errors import ConfigError
from turnout.routers.pattern.base import PATTERNS, PatternContext
from turnout.routers.pattern.decay import ConstantDecay


@PATTERNS.register("retnet")
class RetnetPattern(ConstantDecay):
    """Weight gamma_h^(t - s), gamma_h = 1 - 2^(-shift - h), h = 0..H-1 (Sun et al. 2023), under a softmax.

    Args:
        shift: > 0; 5 as published: the fastest head keeps 1 - 1/32 a step.
        prune: largest share of a row's weight that may be skipped; 0 skips nothing.
        cap: with `prune`, norm to which queries and keys are shortened; none = 6.
    """

    # paper: retention has no softmax; here the decay alone is taken over, so that patterns differ in nothing else.

    def __init__(
        self, context: PatternContext, *, shift: float = 5.0, prune: float = 0.0, cap: float | None = None
    ) -> None:
        if not shift > 0:
            raise ConfigError(f"pattern retnet: shift={shift}; expected > 0, so that gamma = 1 - 2^-shift is in (0, 1)")
        heads = range(context.first, context.first + context.heads)
        super().__init__(context, [-math.log1p(-(2.0 ** (-shift - h))) for h in heads], prune=prune, cap=cap)
