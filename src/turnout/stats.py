"""Means and 95 % intervals: Student's t over seeds, Wilson's score for one proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1 … 30 degrees of freedom.
_T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z95 = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean, its 95 % interval and how the interval was made.

    Attributes:
        mean: NaN when there is no value.
        low: lower end, NaN when there is no interval (one seed and no proportion).
        high: upper end.
        n: number of values (seeds) that entered.
        method: "t over seeds", "Wilson" or "none".
    """

    mean: float
    low: float
    high: float
    n: int
    method: str


def t95(freedom: int) -> float:
    """97.5 % quantile of Student's t; exact to four digits up to 30, Cornish-Fisher above (error < 1e-4)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion `share` seen in `n` trials.

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)        (Wilson 1927)
    """
    if n <= 0 or not 0 <= share <= 1:
        return math.nan, math.nan
    z2 = _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mean_over_seeds(values: Sequence[float], *, proportion_of: Sequence[float] | None = None) -> Estimate:
    """Mean over seeds with a 95 % interval.

    Two or more different values: mean ± t·s/sqrt(n). One value, or values that are all equal (where t would claim a
    width of zero): Wilson over the pooled trials when `proportion_of` gives them, else no interval.

    Args:
        values: one number per seed; NaN is left out.
        proportion_of: number of trials behind each value, when the values are proportions; the interval then stays
            in [0, 1].
    """
    trials_of = proportion_of if proportion_of is not None else [math.nan] * len(values)
    kept = [(value, trials) for value, trials in zip(values, trials_of, strict=True) if not math.isnan(value)]
    if not kept:
        return Estimate(mean=math.nan, low=math.nan, high=math.nan, n=0, method="none")
    n = len(kept)
    mean = math.fsum(value for value, _ in kept) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value, _ in kept) / (n - 1)) if n > 1 else 0.0
    if spread > 1e-12:
        half = t95(n - 1) * spread / math.sqrt(n)
        low, high = mean - half, mean + half
        if proportion_of is not None:
            low, high = max(0.0, low), min(1.0, high)
        return Estimate(mean=mean, low=low, high=high, n=n, method="t over seeds")
    trials = [trial for _, trial in kept]
    if all(trial > 0 for trial in trials):
        low, high = wilson(min(1.0, max(0.0, mean)), int(sum(trials)))
        return Estimate(mean=mean, low=low, high=high, n=n, method="Wilson")
    return Estimate(mean=mean, low=math.nan, high=math.nan, n=n, method="none")


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval over seeds, t·s/sqrt(n); the width of one seed is infinite."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, t95(n - 1) * math.sqrt(variance / n)


def predicted(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval in which one further value falls, given values of the same kind; NaN with fewer than two.

    mean ± t(n - 1) · s · sqrt(1 + 1/n)        (the prediction interval of a normal sample)
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t95(n - 1) * spread * math.sqrt(1 + 1 / n)
    return mean - half, mean + half
