"""The budget at work: usage on a log axis with the usage asked for, and the price λ that steers it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from turnout.report.curves import Bucket, buckets, points, series
from turnout.report.figure import Cell, Data, Figure
from turnout.report.groups import provenance
from turnout.report.numbers import exact_percent
from turnout.report.palette import base_name, ink
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import Run, number
from turnout.report.svg import Scale, log_scale


def target_usage(run: Run) -> float:
    """The usage that the run's schedule steers toward, NaN when it has none."""
    schedule = run.config.get("schedule")
    return number(schedule, "usage") if isinstance(schedule, dict) and schedule.get("kind") == "budget" else math.nan


def budget_figure(run: Run) -> Figure | None:
    """Usage and λ over steps, both logarithmic; None for a run without either."""
    merged = buckets(run.train, 240)
    usage = [point for point in series(merged, "usage") if not math.isnan(point[1])]
    cost = [point for point in series(merged, "lambda") if point[1] > 0]
    evaluated = points(run.evals, "usage")
    if not (usage or evaluated) or run.router == "none":
        return None
    wide, narrow = both_sizes(lambda width: _draw(run, merged, width))
    rows: list[list[Cell]] = [["usage", step, value] for step, value in usage]
    rows += [["usage, evaluated", step, value] for step, value in evaluated]
    rows += [["lambda", step, value] for step, value in cost]
    wanted = target_usage(run)
    words = f"Dashed: the usage asked for, {exact_percent(wanted)}. " if wanted > 0 else ""
    return Figure(
        title="Usage and its price",
        wide=wide,
        narrow=narrow,
        caption=f"Both axes are logarithmic, so that a tenfold change looks the same everywhere. {words}Line: training "
        f"batches; dots: evaluations. {provenance([run])}.",
        data=Data(name="budget", columns=["series", "step", "value"], rows=rows),
    )


def _draw(run: Run, merged: Sequence[Bucket], width: float) -> str:
    left, right = (64.0, 40.0) if width > 600 else (54.0, 12.0)
    usage, evaluated = series(merged, "usage"), points(run.evals, "usage")
    cost = [(step, value if value > 0 else math.nan) for step, value in series(merged, "lambda")]
    last = max([step for step, _ in [*usage, *evaluated]], default=1.0)
    x = Scale(low=0, high=max(1.0, last), start=left, end=width - right)
    wanted = target_usage(run)
    found = ink(base_name(run.arm))
    colour = f"light-dark({found.light},{found.dark})"
    has_cost = any(not math.isnan(value) for _, value in cost)
    box = Box(left=left, top=28, width=width - left - right, height=150)
    values = [value for _, value in [*usage, *evaluated]] + ([wanted] if wanted > 0 else [])
    panel = Panel(box=box, x=x, y=log_scale(values, box.bottom, box.top))
    panel.axes(title="Usage (% of slots, log scale)", y_unit="%", x_label="" if has_cost else "training step",
               x_ticks=not has_cost)  # fmt: skip
    panel.line(usage, colour, width=1.8)
    for point in evaluated:
        panel.dot(point, colour, size=2.8)
    if wanted > 0:
        panel.reference(wanted, f"asked: {exact_percent(wanted)}")
    marks, bottom = panel.marks, box.bottom
    if has_cost:
        below = Box(left=left, top=bottom + 40, width=box.width, height=110)
        lower = Panel(box=below, x=x, y=log_scale([v for _, v in cost if not math.isnan(v)], below.bottom, below.top))
        lower.axes(title="Price of a gate λ (log scale)", x_label="training step")
        lower.line(cost, "var(--ink)", width=1.8)
        marks, bottom = marks + lower.marks, below.bottom
    label = f"{run.name}: usage and lambda over {last:,.0f} steps, logarithmic"
    return picture(width, bottom + 40, marks, label=label)
