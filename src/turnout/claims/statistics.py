"""Intervals: Student's t over seeds, Wilson for a proportion. Small enough to carry no dependency."""

from __future__ import annotations

import math

# Two-sided 95 % quantiles of Student's t by degrees of freedom (standard tables).
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval over seeds; infinite for a single seed."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.inf
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, _T95[min(n - 2, len(_T95) - 1)] * math.sqrt(variance / n)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    z, p = 1.959964, successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
