"""Series out of metric lines: bucketed training curves, phases, and the seeds of a group on a shared grid."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.plot import Point
from turnout.report.run import Line, Run, number, numbers

PHASES = ("explore", "ramp", "hold", "grow", "settle", "joint", "budget")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of training: steps first … last."""

    name: str
    first: float
    last: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Neighbouring training lines merged into one point of a curve.

    Attributes:
        step: mean step.
        phase: phase of the last line.
        mean: mean of each numeric key; NaN is left out.
        low: least value of each key.
        high: greatest value of each key.
        layers: mean usage per layer.
        skipping: was compute skipped in all lines?
    """

    step: float
    phase: str
    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    layers: list[float]
    skipping: bool


KEYS = ("lambda", "loss", "accuracy", "usage", "gates_per_seq", "length", "ms")


def phases(run: Run) -> list[Phase]:
    """Consecutive lines of one phase, merged; a phase reaches to the first step of the next."""
    found: list[Phase] = []
    for line in run.train or run.evals:
        name, step = str(line.get("phase") or ""), number(line, "step")
        if not name:
            continue
        if found and found[-1].name == name:
            found[-1] = Phase(name=name, first=found[-1].first, last=step)
            continue
        if found:
            found[-1] = Phase(name=found[-1].name, first=found[-1].first, last=step)
        found.append(Phase(name=name, first=step, last=step))
    return found


def buckets(lines: Sequence[Line], about: int) -> list[Bucket]:
    """At most `about` buckets plus one per phase change: a bucket never mixes phases or lengths."""
    size = max(1, math.ceil(len(lines) / max(1, about)))
    merged: list[Bucket] = []
    held: list[Line] = []
    for line in lines:
        changed = held and any(line.get(key) != held[-1].get(key) for key in ("phase", "length", "skipping"))
        if held and (len(held) >= size or changed):
            merged.append(_merge(held))
            held = []
        held.append(line)
    if held:
        merged.append(_merge(held))
    return merged


def series(items: Sequence[Bucket], key: str) -> list[Point]:
    """(step, mean of key); a missing value interrupts the line."""
    return [(item.step, item.mean[key]) for item in items]


def points(lines: Sequence[Line], key: str) -> list[Point]:
    """(step, value) of the lines that have the key."""
    found = [(number(line, "step"), number(line, key)) for line in lines]
    return [(step, value) for step, value in found if not math.isnan(value)]


def band(curves: Sequence[Sequence[Point]], *, geometric: bool = False) -> tuple[list[Point], list[Point], list[Point]]:
    """(mean, least, greatest) of several curves on the union of their steps; each is interpolated inside its range.

    Args:
        curves: one per seed, sorted by step.
        geometric: mean of logarithms (for usage on a log axis); falls back to the plain mean where a value is 0.
    """
    grid = sorted({step for curve in curves for step, _ in curve})
    middle: list[Point] = []
    low: list[Point] = []
    high: list[Point] = []
    for step in grid:
        values = [value for curve in curves if not math.isnan(value := _at(curve, step))]
        if not values:
            continue
        if geometric and min(values) > 0:
            mean = math.exp(math.fsum(math.log(value) for value in values) / len(values))
        else:
            mean = math.fsum(values) / len(values)
        middle.append((step, mean))
        low.append((step, min(values)))
        high.append((step, max(values)))
    return middle, low, high


def usage_layers(lines: Sequence[Line], layer: int) -> list[Point]:
    """(step, usage of one layer)."""
    found = [(number(line, "step"), numbers(line, "usage_layers")) for line in lines]
    return [(step, values[layer]) for step, values in found if layer < len(values)]


def _at(curve: Sequence[Point], step: float) -> float:
    steps = [x for x, _ in curve]
    right = bisect.bisect_left(steps, step)
    if right < len(curve) and steps[right] == step:
        return curve[right][1]
    if right in (0, len(curve)):
        return math.nan
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def _value(line: Line, key: str) -> float:
    """A number of a training line; the loss is the task's own where stored, so that it compares with evaluations."""
    if key == "loss" and not math.isnan(number(line, "task_loss")):
        return number(line, "task_loss")
    return number(line, key)


def _merge(lines: Sequence[Line]) -> Bucket:
    mean: dict[str, float] = {}
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for key in KEYS:
        values = [value for line in lines if math.isfinite(value := _value(line, key))]
        mean[key] = math.fsum(values) / len(values) if values else math.nan
        low[key], high[key] = (min(values), max(values)) if values else (math.nan, math.nan)
    per_layer = [values for line in lines if (values := numbers(line, "usage_layers"))]
    width = min((len(values) for values in per_layer), default=0)
    return Bucket(
        step=math.fsum(number(line, "step") for line in lines) / len(lines),
        phase=str(lines[-1].get("phase") or ""),
        mean=mean,
        low=low,
        high=high,
        layers=[math.fsum(values[i] for values in per_layer) / len(per_layer) for i in range(width)],
        skipping=all(bool(line.get("skipping")) for line in lines),
    )
