"""Phase transitions: where a training curve leaves its start and where it arrives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.errors import DataError
from turnout.stats import Estimate, mean_over_seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A jump of a curve.

    Attributes:
        start: first step with 10 % of the way from the lowest early value to the final one; plateau length.
        end: first step with 90 % of it, at or after `start`.
        low, high: values before and at the end.
    """

    start: float
    end: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Steps from 10 % to 90 %."""
        return self.end - self.start


def find_transition(curve: Sequence[Sequence[float]], *, least_rise: float = 0.5) -> Transition | None:
    """The 10-90 % rise of a curve, linearly interpolated between its points.

    Args:
        curve: (step, value) pairs, ascending in step; further entries of a pair are ignored.
        least_rise: a curve that rises by less has no transition.
    Returns:
        None when there is no such rise.
    Raises:
        DataError: fewer than 3 points.
    """
    if len(curve) < 3:
        raise DataError(f"a transition needs at least 3 points of a curve, got {len(curve)}; evaluate more often")
    low, high = curve[0][1], max(point[1] for point in curve)
    if high - low < least_rise:
        return None
    start = _crossing(curve, low + 0.1 * (high - low))
    return Transition(start=start, end=max(start, _crossing(curve, low + 0.9 * (high - low))), low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Jump:
    """The transitions of several seeds.

    Attributes:
        seeds: of every curve; None where there is no transition.
        start, end, width: mean step with its 95 % interval over the seeds that jump.
    """

    seeds: tuple[Transition | None, ...]
    start: Estimate
    end: Estimate
    width: Estimate

    @property
    def jumping(self) -> int:
        """Seeds with a transition."""
        return sum(found is not None for found in self.seeds)


def over_seeds(curves: Sequence[Sequence[Sequence[float]]], *, least_rise: float = 0.5) -> Jump:
    """The transition of each curve, and when they happen on average.

    Raises:
        DataError: a curve has fewer than 3 points.
    """
    seeds = tuple(find_transition(curve, least_rise=least_rise) for curve in curves)
    jumps = [found for found in seeds if found is not None]
    start, end, width = (mean_over_seeds([getattr(t, name) for t in jumps]) for name in ("start", "end", "width"))
    return Jump(seeds=seeds, start=start, end=end, width=width)


def _crossing(curve: Sequence[Sequence[float]], level: float) -> float:
    """First step at which the curve reaches `level`."""
    before: Sequence[float] | None = None
    for point in curve:
        if point[1] >= level:
            if before is None or point[1] == before[1]:
                return float(point[0])
            return before[0] + (level - before[1]) / (point[1] - before[1]) * (point[0] - before[0])
        before = point
    return math.nan
