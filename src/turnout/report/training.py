"""The training section: accuracy, loss, usage, penalty weight and step time over steps, on one shared x axis.

One run: its phases as bands, its events as numbered marks, usage layer by layer. Several runs: one colour per
mechanism, a thin line per seed and, from three seeds on, their mean with a ribbon from the least to the greatest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.curves import PHASES, Bucket, Phase, band, buckets, phases, points, series, usage_layers
from turnout.report.figure import Cell, Data, Figure
from turnout.report.groups import Group, provenance
from turnout.report.numbers import exact_percent, percent
from turnout.report.plot import Box, Panel, Point, both_sizes, picture
from turnout.report.run import Line, Run, number
from turnout.report.svg import Scale, linear_scale, log_scale, tag, text

MAX_EVENT_MARKS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a panel shows: metric key, title with unit, height, kind of axis."""

    key: str
    title: str
    height: float
    kind: str = "linear"
    unit: str = ""


ACCURACY = Plan(key="accuracy", title="Accuracy (% of answers right)", height=150, unit="%")
LOSS = Plan(key="loss", title="Loss (nats per target, log scale)", height=110, kind="log")
TEXT_LOSS = Plan(key="loss", title="Loss (nats per token; the first steps are above the axis)", height=190, kind="late")
USAGE = Plan(key="usage", title="Usage (% of attention slots open, log scale)", height=190, kind="log", unit="%")
GATES = Plan(key="gates_per_seq", title="Open gates per sequence (count, log scale)", height=110, kind="log")
LENGTH = Plan(key="length", title="Sequence length (tokens, log₂ scale)", height=80, kind="log2")
LAMBDA = Plan(key="lambda", title="Penalty weight λ", height=80)
STEP_MS = Plan(key="ms", title="Time per training step (ms)", height=90)


def training_figure(run: Run, group: Group, chance: float) -> Figure | None:
    """Curves of one run; None when it has no metric lines."""
    if not run.train and not run.evals:
        return None
    merged = buckets(run.train, 240)
    plans = _plans(run, merged)
    wide, narrow = both_sizes(lambda width: _draw_single(run, group, merged, plans, chance, width))
    marks = "Lines are training batches (averages of neighbouring steps), dots are evaluations on held-out sequences. "
    return Figure(
        title="Training, step by step",
        wide=wide,
        narrow=narrow,
        caption=marks + "Bands are phases, numbered lines are the events listed below. " + provenance([run]) + ".",
        data=_data([run], {str(run.path): merged}, "training"),
    )


def comparison_figure(task: str, groups: Sequence[Group], chance: float) -> Figure | None:
    """Curves of several runs of one task; None when none has metric lines."""
    runs = [run for group in groups for run in group.runs if run.train or run.evals]
    if not runs:
        return None
    merged = {str(run.path): buckets(run.train, max(40, 400 // len(runs))) for run in runs}
    first = TEXT_LOSS if groups[0].is_text else ACCURACY
    plans = [first, USAGE, LAMBDA]
    curves = {plan.key: [c for group in groups for c in _group_curves(group, plan.key, merged)] for plan in plans}
    plans = [plan for plan in plans if any(value or plan is not LAMBDA for c in curves[plan.key] for _, value in c)]
    if not plans:
        return None
    wide, narrow = both_sizes(lambda width: _draw_many(groups, merged, plans, chance, width))
    return Figure(
        title=f"Training, step by step: {task}",
        wide=wide,
        narrow=narrow,
        caption="Evaluations on held-out sequences (training batches where a run was not evaluated): a thin line per "
        f"seed; from three seeds on a thick line for their mean and a ribbon from the least to the greatest. "
        f"{provenance(runs)}.",
        data=_data(runs, merged, f"training_{task}"),
    )


def _marked(run: Run) -> list[Line]:
    """The events that get a number in the figure: the first ones after step 0."""
    return [event for event in run.events if number(event, "step") > 0][:MAX_EVENT_MARKS]


def event_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """(number of its mark or "", step, event, detail) of every event."""
    marked = _marked(run)
    rows = []
    for event in run.events:
        sign = str(marked.index(event) + 1) if event in marked else ""
        step = number(event, "step")
        shown = "" if math.isnan(step) else f"{step:,.0f}"
        rows.append((sign, shown, str(event.get("event", "")), str(event.get("detail", ""))))
    return rows


def _plans(run: Run, merged: Sequence[Bucket]) -> list[Plan]:
    """The panels that have something to show."""
    lengths = {line.get("length") for line in run.train}
    wanted = [TEXT_LOSS if run.is_text else ACCURACY]
    wanted += [] if run.is_text else [LOSS]
    wanted += [USAGE, GATES, LENGTH] if len(lengths) > 1 else [USAGE]
    wanted += [LAMBDA, STEP_MS]
    lines: list[Line] = [*run.train, *run.evals]
    present = [plan for plan in wanted if any(math.isfinite(number(line, plan.key)) for line in lines)]
    lambdas = {item.mean["lambda"] for item in merged}
    return [plan for plan in present if plan is not LAMBDA or lambdas - {0.0}] or [wanted[0]]


def _draw_single(
    run: Run, group: Group, merged: Sequence[Bucket], plans: Sequence[Plan], chance: float, width: float
) -> str:
    last = max([item.step for item in merged] + [number(line, "step") for line in run.evals], default=1.0)
    boxes, height, x = _stack(plans, width, last, right=74 if width > 600 else 44)
    marks = _phase_bands(phases(run), boxes, x)
    for plan, box in zip(plans, boxes, strict=True):
        curves = [series(merged, plan.key), points(run.evals, plan.key)]
        values = _late(curves, last) if plan.kind == "late" else [value for curve in curves for _, value in curve]
        if plan.key == "usage":
            values += [value for item in merged for value in item.layers]
        panel = Panel(box=box, x=x, y=_y_scale(plan, values, box))
        last_panel = box is boxes[-1]
        x_label = "training step" if last_panel else ""
        panel.axes(title=plan.title, y_unit=plan.unit, x_label=x_label, x_ticks=last_panel)
        if plan.key == "usage":
            _draw_layers(panel, run, merged, group)
        _draw_series(panel, run, merged, plan, group)
        if plan.key == "accuracy" and not math.isnan(chance):
            panel.reference(chance, f"chance {exact_percent(chance)}")
        target = _target_usage(run)
        if plan.key == "usage" and target > 0:
            panel.reference(target, f"budget {exact_percent(target)}")
        if plan is STEP_MS:
            _draw_skipping(panel, merged)
        marks += panel.marks
    marks += _event_marks(run, boxes, x)
    words = f"{run.name}: {', '.join(plan.title for plan in plans)} over {last:,.0f} training steps"
    return picture(width, height, marks, label=words)


def _draw_series(panel: Panel, run: Run, merged: Sequence[Bucket], plan: Plan, group: Group) -> None:
    colour = group.var
    if plan.key in ("accuracy", "loss", "ms"):
        low = _inside([(item.step, item.low[plan.key]) for item in merged], panel, plan)
        high = _inside([(item.step, item.high[plan.key]) for item in merged], panel, plan)
        panel.ribbon(low, high, colour)
    if plan.key == "lambda":
        colour = "var(--ink)"
    panel.line(_inside(series(merged, plan.key), panel, plan), colour, width=1.8)
    evaluated = points(run.evals, plan.key) if plan.key in ("accuracy", "loss", "usage", "gates_per_seq") else []
    for step, value in _inside(evaluated, panel, plan):
        shown = percent(value) if plan.unit == "%" else f"{value:.4g}"
        panel.dot((step, value), colour, title=f"evaluation at step {step:,.0f}: {shown}")


def _draw_layers(panel: Panel, run: Run, merged: Sequence[Bucket], group: Group) -> None:
    """One thin line per layer with its name at the end, and the total's name among them."""
    labels: list[tuple[float, str, str]] = []
    total = [*points(run.evals[-1:], "usage"), *series(merged, "usage")[-1:]]
    if total:
        labels.append((total[0][1], "all", group.var))
    for layer, index in enumerate(run.routed_layers):
        line = [(item.step, item.layers[layer]) for item in merged if layer < len(item.layers)]
        ends = usage_layers(run.evals[-1:], layer) or line[-1:]
        line = line or usage_layers(run.evals, layer)
        panel.line(line, f"var(--l{layer})", width=1.2)
        if ends:
            name = f"layer {index}" if panel.box.left > 45 else f"L{index}"
            labels.append((ends[-1][1], name, f"var(--l{layer})"))
    panel.end_labels(labels)


def _draw_skipping(panel: Panel, merged: Sequence[Bucket]) -> None:
    """A thick base line over the steps in which compute was really skipped."""
    skipped = [(item.step, 0.0 if item.skipping else math.nan) for item in merged]
    panel.line(skipped, "var(--ink)", width=4)
    first = next((item.step for item in merged if item.skipping), None)
    if first is not None:
        at = min(panel.x(first) + 4, panel.box.right - 90)
        panel.marks.append(text("compute skipped", at, panel.box.bottom - 6, class_="tick halo"))


def _target_usage(run: Run) -> float:
    """The usage that a budget schedule steers toward; NaN for other schedules."""
    schedule = run.config.get("schedule")
    return number(schedule, "usage") if isinstance(schedule, dict) and schedule.get("kind") == "budget" else math.nan


def _draw_many(
    groups: Sequence[Group], merged: dict[str, list[Bucket]], plans: Sequence[Plan], chance: float, width: float
) -> str:
    every = [_group_curves(group, plan.key, merged) for group in groups for plan in plans]
    last = max((curve[-1][0] for curves in every for curve in curves if curve), default=1.0)
    boxes, height, x = _stack(plans, width, last, right=150 if width > 600 else 96, top=26)
    marks: list[str] = []
    for plan, box in zip(plans, boxes, strict=True):
        drawn = {group.label: _group_curves(group, plan.key, merged) for group in groups}
        every_curve = [curve for curves in drawn.values() for curve in curves]
        values = (
            _late(every_curve, last) if plan.kind == "late" else [value for curve in every_curve for _, value in curve]
        )
        panel = Panel(box=box, x=x, y=_y_scale(plan, values, box))
        last_panel = box is boxes[-1]
        x_label = "training step" if last_panel else ""
        panel.axes(title=plan.title, y_unit=plan.unit, x_label=x_label, x_ticks=last_panel)
        labels = []
        for group in groups:
            curves = [curve for curve in drawn[group.label] if curve]
            if not curves:
                continue
            many = len(curves) >= 3
            if many:
                middle, low, high = (_inside(part, panel, plan) for part in band(curves, geometric=plan.kind == "log"))
                panel.ribbon(low, high, group.var)
                panel.line(middle, group.var, width=2.2)
            for curve in curves:
                panel.line(
                    _inside(curve, panel, plan), group.var, width=0.8 if many else 1.8, opacity=0.6 if many else 1
                )
            end = math.fsum(curve[-1][1] for curve in curves) / len(curves)
            labels.append((end, group.label, group.var))
        if plan is not LAMBDA:
            panel.end_labels(labels)
        if plan.key == "accuracy" and not math.isnan(chance):
            panel.reference(chance, f"chance {exact_percent(chance)}")
        marks += panel.marks
    words = f"{', '.join(plan.title for plan in plans)} over training steps for {', '.join(g.label for g in groups)}"
    return picture(width, height, marks, label=words)


def _group_curves(group: Group, key: str, merged: dict[str, list[Bucket]]) -> list[list[Point]]:
    """One curve per seed: evaluations where there are at least two, else training buckets."""
    curves = []
    for run in group.runs:
        evaluated = points(run.evals, key)
        if len(evaluated) < 2:
            evaluated = [point for point in series(merged.get(str(run.path), []), key) if not math.isnan(point[1])]
        if evaluated:
            curves.append(evaluated)
    return curves


def _stack(
    plans: Sequence[Plan], width: float, last: float, *, right: float, top: float = 58
) -> tuple[list[Box], float, Scale]:
    """Boxes one below the other with one x axis."""
    left = 52.0 if width > 600 else 42.0
    boxes = []
    for plan in plans:
        boxes.append(Box(left=left, top=top, width=width - left - right, height=plan.height))
        top += plan.height + 34
    return boxes, top + 6, Scale(low=0, high=max(1.0, last), start=left, end=width - right)


def _late(curves: Sequence[Sequence[Point]], last: float) -> list[float]:
    """Values after the first fifth of training: the range of a loss axis that is not ruled by the first steps."""
    late = [value for curve in curves for step, value in curve if step >= 0.2 * last]
    return late or [value for curve in curves for _, value in curve]


def _inside(curve: Sequence[Point], panel: Panel, plan: Plan) -> list[Point]:
    """The curve without its points above a cut axis; other axes hold all points."""
    if plan.kind != "late":
        return list(curve)
    return [(step, value if value <= panel.y.high else math.nan) for step, value in curve]


def _y_scale(plan: Plan, values: Sequence[float], box: Box) -> Scale:
    if plan.unit == "%" and plan.kind == "linear":
        return Scale(low=0, high=1, start=box.bottom, end=box.top)
    if plan.kind in ("log", "log2"):
        return log_scale(values, box.bottom, box.top, kind=plan.kind)
    return linear_scale(values, box.bottom, box.top, floor=None if plan.kind == "late" else 0.0)


def _phase_bands(found: Sequence[Phase], boxes: Sequence[Box], x: Scale) -> list[str]:
    marks = []
    top, bottom = boxes[0].top, boxes[-1].bottom
    free = -math.inf
    for phase in found:
        left, right = x(phase.first) if phase is not found[0] else x.start, x(phase.last)
        css = phase.name if phase.name in PHASES else "other"
        size = {"width": max(0.5, right - left), "height": bottom - top}
        marks.append(tag("rect", class_=f"phase phase-{css}", x=left, y=top, **size))
        marks.append(tag("line", class_="phase-edge", x1=left, x2=left, y1=top - 26, y2=bottom))
        if left >= free and right - left > 6.2 * len(phase.name) + 4:
            marks.append(text(phase.name, left + 4, top - 28, class_="phase-label"))
            free = left + 6.4 * len(phase.name) + 8
    return marks


def _event_marks(run: Run, boxes: Sequence[Box], x: Scale) -> list[str]:
    marked = _marked(run)
    marks = []
    free = -math.inf
    for i, event in enumerate(marked, start=1):
        step = number(event, "step")
        if math.isnan(step):
            continue
        at = x(step)
        title = f"{event.get('event', '')} at step {step:,.0f}: {event.get('detail', '')}"
        marks.append(tag("line", class_="event", x1=at, x2=at, y1=boxes[0].top, y2=boxes[-1].bottom))
        if at >= free:
            marks.append(text(str(i), at, boxes[0].top - 45, class_="event-label", text_anchor="middle", title=title))
            free = at + 14
    return marks


def _data(runs: Sequence[Run], merged: dict[str, list[Bucket]], name: str) -> Data:
    layers = max((len(run.routed_layers) for run in runs), default=0)
    keys = ("lambda", "loss", "accuracy", "usage", "gates_per_seq", "length", "ms")
    columns = ["run", "seed", "series", "step", "phase", *keys, *(f"usage_layer_{i}" for i in range(layers))]
    rows: list[list[Cell]] = []
    for run in runs:
        for item in merged[str(run.path)]:
            rest: list[Cell] = [*item.layers, *[None] * (layers - len(item.layers))]
            head: list[Cell] = [run.name, run.seed, "train", round(item.step, 1), item.phase]
            rows.append([*head, *(item.mean[key] for key in keys), *rest])
        for line in run.evals:
            layer_cells: list[Cell] = []
            for i in range(layers):
                found = usage_layers([line], i)
                layer_cells.append(found[0][1] if found else None)
            head = [run.name, run.seed, "eval", number(line, "step"), str(line.get("phase", ""))]
            rows.append([*head, *(number(line, key) for key in keys), *layer_cells])
    return Data(name=name, columns=columns, rows=rows)
