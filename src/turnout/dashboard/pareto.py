"""Usage against quality over many runs: one mark a run, and the front of those that no other run beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.dashboard.listing import RunLine
from turnout.report.figure import Cell, Data, Figure
from turnout.report.numbers import percent, significant
from turnout.report.palette import base_name, ink
from turnout.report.plot import Box, Panel, both_sizes, marker, picture
from turnout.report.svg import Scale, linear_scale, log_scale, tag, text

Point = tuple[float, float]
LABELLED = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A line of the legend."""

    label: str
    swatch: str
    runs: int


def front(points: Sequence[Point], *, higher: bool) -> list[int]:
    """Indices of the points that no other one beats: less usage and better quality; ordered by usage.

    A point stays unless another has at most its usage and at least its quality, and is better in one of them.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1] if higher else points[i][1]))
    kept: list[int] = []
    best = -math.inf if higher else math.inf
    for i in order:
        value = points[i][1]
        if (value > best) if higher else (value < best):
            kept.append(i)
            best = value
    return kept


def pareto_figure(task: str, lines: Sequence[RunLine], quality: str) -> Figure | None:
    """The figure over all runs of one task that have a usage and this quality.

    Args:
        task: its name; losses of different tasks share no scale.
        lines: its runs.
        quality: "loss" (lower is better) or "accuracy".
    """
    shown = [line for line in lines if not math.isnan(line.usage) and not math.isnan(getattr(line, quality))]
    if not shown:
        return None
    points = [(line.usage, float(getattr(line, quality))) for line in shown]
    best = front(points, higher=quality == "accuracy")
    wide, narrow = both_sizes(lambda width: _draw(shown, points, best, quality, width))
    rows: list[list[Cell]] = [
        [line.name, line.task, line.arm, line.seed, line.usage, line.accuracy, line.loss, i in best]
        for i, line in enumerate(shown)
    ]
    better = "higher" if quality == "accuracy" else "lower"
    return Figure(
        title=f"{task}: usage against {quality}",
        wide=wide,
        narrow=narrow,
        caption=f"One mark a run (left is cheaper, {better} is better); round marks are learned routers, other shapes "
        f"are controls. The line joins the runs that no other run beats in both. {len(shown):,} of {len(lines):,} runs "
        "have both numbers; values are those of the last evaluation.",
        data=Data(name=f"pareto_{task}", rows=rows,
                  columns=["run", "task", "mechanism", "seed", "usage", "accuracy", "loss", "on_front"]),
    )  # fmt: skip


def legend(lines: Sequence[RunLine]) -> list[Key]:
    """Mechanisms in the figure, by number of runs."""
    counts: dict[str, int] = {}
    for line in lines:
        counts[base_name(line.arm)] = counts.get(base_name(line.arm), 0) + 1
    keys = []
    for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        mark = tag("path", d=marker(ink(name).marker, 8, 8, 5.5), style=f"fill:{colour(name)}")
        swatch = tag("svg", mark, class_="swatch", viewBox="0 0 16 16", aria_hidden="true")
        keys.append(Key(label=name.replace("_", " "), swatch=swatch, runs=n))
    return keys


def colour(mechanism: str) -> str:
    """The colour of a mechanism on a light and on a dark page."""
    found = ink(base_name(mechanism))
    return f"light-dark({found.light},{found.dark})"


def _draw(lines: Sequence[RunLine], points: Sequence[Point], best: Sequence[int], quality: str, width: float) -> str:
    wide = width > 600
    box = Box(left=60, top=30, width=width - (140 if wide else 84), height=400 if wide else 320)
    x = log_scale([usage for usage, _ in points], box.left + 8, box.right - 8, zero_gap=36)
    panel = Panel(box=box, x=x, y=_quality_scale([value for _, value in points], quality, box))
    unit = "%" if quality == "accuracy" else ""
    scaled = ", log scale" if panel.y.kind != "linear" else ""
    title = "Accuracy (% of answers right)" if quality == "accuracy" else f"Loss (nats per target{scaled})"
    panel.axes(title=title, y_unit=unit, x_unit="%", x_label="usage (% of attention slots open, log scale)")
    panel.line(_steps([points[i] for i in best]), "var(--soft)", dash="4 3")
    size = 4.6 if len(points) <= 60 else 3.4 if len(points) <= 400 else 2.6
    for i in sorted(range(len(points)), key=lambda i: i in best):
        line, (usage, value) = lines[i], points[i]
        shown = percent(value) if quality == "accuracy" else significant(value, 4)
        words = f"{line.name} ({line.arm}, seed {line.seed}): {quality} {shown} at {percent(usage)} usage"
        grown = size + (1.4 if i in best else 0)
        panel.dot((usage, value), colour(line.arm), shape=ink(base_name(line.arm)).marker, size=grown, title=words)
    if wide:
        panel.marks += _names(panel, [(points[i], lines[i]) for i in best[-LABELLED:]])
    words = "; ".join(f"{lines[i].name} at {percent(points[i][0])} usage" for i in best[:LABELLED])
    return picture(width, box.bottom + 40, panel.marks, label=f"{title} against usage. On the front: {words}.")


def _names(panel: Panel, front: Sequence[tuple[Point, RunLine]]) -> list[str]:
    """Names of runs beside their marks; one that has no room left is told by its mark's tooltip and the table."""
    taken: list[tuple[float, float, float, float]] = []
    marks = []
    for (usage, value), line in front:
        words = _short(line.name)
        wide, x, y = 6.6 * len(words), panel.x(usage), panel.y(value)
        # Above the mark, but not in the title of the axis.
        heights = (y - 6, y + 14) if y - 18 > panel.box.top else (y + 14,)
        places = [(left, base) for left in (x + 10, x - 10 - wide) for base in heights]
        for left, base in places:
            room = left >= panel.box.left and left + wide <= panel.box.right + 70
            free = all(left + wide < a or c < left or base < b or d < base - 12 for a, b, c, d in taken)
            if room and free:
                taken.append((left, base - 12, left + wide, base))
                style = f"fill:{colour(line.arm)}"
                marks.append(text(words, left, base, class_="direct halo", style=style))
                break
    return marks


def _quality_scale(values: Sequence[float], quality: str, box: Box) -> Scale:
    if quality == "accuracy":
        return Scale(low=0, high=1, start=box.bottom - 8, end=box.top + 8)
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 20 * min(positive):
        return log_scale(values, box.bottom - 8, box.top + 8)
    return linear_scale(values, box.bottom - 8, box.top + 8)


def _steps(points: Sequence[Point]) -> list[Point]:
    """A staircase: between two runs of the front nothing better is known."""
    found: list[Point] = []
    for usage, value in points:
        if found:
            found.append((usage, found[-1][1]))
        found.append((usage, value))
    return found


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
