"""The controls section: quality against usage with direct labels, groups with intervals, equal usage in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.figure import Cell, Data, Figure
from turnout.report.groups import Group, provenance
from turnout.report.numbers import MISSING, count, exact_percent, interval, milliseconds, percent, significant
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.svg import Scale, linear_scale, log_scale, path, spread, tag, text
from turnout.stats import Estimate

EQUAL_USAGE = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRow:
    """A line of the table of groups, ready to print."""

    label: str
    var: str
    marker: str
    task: str
    seeds: int
    quality: str
    quality_interval: str
    usage: str
    usage_interval: str
    gates: str
    ms: str
    method: str


def group_rows(groups: Sequence[Group]) -> list[GroupRow]:
    """One row per group with mean and 95 % interval."""
    return [_row(group) for group in groups]


def group_data(groups: Sequence[Group]) -> Data:
    """The same as numbers."""
    rows: list[list[Cell]] = []
    for group in groups:
        cells: list[Cell] = [group.task, group.length, group.label, len(group.runs)]
        for key in ("accuracy", "loss", "usage", "gates_per_seq"):
            found = group.estimate(key)
            cells += [found.mean, found.low, found.high]
        rows.append([*cells, _quality(group).method])
    columns = ["task", "length", "group", "seeds"]
    columns += [
        f"{key}{end}" for key in ("accuracy", "loss", "usage", "gates_per_seq") for end in ("", "_low95", "_high95")
    ]
    return Data(name="groups", columns=[*columns, "interval"], rows=rows)


def scatter_figure(task: str, groups: Sequence[Group], chance: float) -> Figure | None:
    """Accuracy (or loss) against usage, one mark per seed and one large mark with its interval per group."""
    drawn = [
        group
        for group in groups
        if not math.isnan(_quality(group).mean) and not math.isnan(group.estimate("usage").mean)
    ]
    if not drawn:
        return None
    key = _key(drawn[0])
    wide, narrow = both_sizes(lambda width: _draw(drawn, key, chance, width))
    runs = [run for group in drawn for run in group.runs]
    rows: list[list[Cell]] = [
        [run.name, group.label, run.seed, run.final("usage"), run.final(key), run.final("n_eval")]
        for group in drawn
        for run in group.runs
    ]
    better = "lower is better" if key == "loss" else "higher is better"
    return Figure(
        title=f"Learned routing beside its controls: {task}",
        wide=wide,
        narrow=narrow,
        caption="Small marks are seeds, large marks the mean of a mechanism with its 95 % interval "
        f"({better}; further left is cheaper). Round marks are learned routers, other shapes are controls. "
        f"{provenance(runs)}.",
        data=Data(name=f"controls_{task}", columns=["run", "group", "seed", "usage", key, "n"], rows=rows),
    )


def equal_usage_words(groups: Sequence[Group]) -> list[str]:
    """Each learned router against every control within 1.25 × its usage, in words; what is missing is said as well."""
    words = []
    for learned in (group for group in groups if group.learned):
        usage = learned.estimate("usage").mean
        others = [other for other in groups if _is_control_of(other, learned)]
        equal = equal_usage(learned, groups)
        if not equal:
            if others:
                words.append(
                    f"{learned.label} runs at {percent(usage)} usage and no control here is within a factor of "
                    f"{EQUAL_USAGE} of that, so these runs cannot say what learning to route is worth; add a random "
                    "and a frozen control at that usage."
                )
            continue
        parts = [f"{group.label} {_with_interval(group)} ({percent(group.estimate('usage').mean)})" for group in equal]
        words.append(
            f"At equal usage ({percent(usage)}) {learned.label} reaches {_with_interval(learned)}; {', '.join(parts)}."
        )
    return words


def equal_usage(learned: Group, groups: Sequence[Group]) -> list[Group]:
    """The controls of a learned router, on its task and length, within 1.25 × its usage."""
    usage = learned.estimate("usage").mean
    controls = [other for other in groups if _is_control_of(other, learned)]
    return [other for other in controls if _same_usage(usage, other.estimate("usage").mean)]


def _is_control_of(other: Group, learned: Group) -> bool:
    return other.task == learned.task and other.length == learned.length and not other.learned


def _row(group: Group) -> GroupRow:
    quality, usage, gates = _quality(group), group.estimate("usage"), group.estimate("gates_per_seq")
    write = _loss_words if _key(group) == "loss" else percent
    skipping, both = group.estimate("ms_per_step_skipping"), group.estimate("ms_per_step_dense")
    return GroupRow(
        label=group.label,
        var=group.var,
        marker=group.ink.marker,
        task=group.task,
        seeds=len(group.runs),
        quality=write(quality.mean),
        quality_interval=interval(quality.low, quality.high, write),
        usage=percent(usage.mean),
        usage_interval=interval(usage.low, usage.high),
        gates=count(gates.mean),
        ms=milliseconds(both.mean if math.isnan(skipping.mean) else skipping.mean),
        method=MISSING if quality.method == "none" else quality.method,
    )


def _draw(groups: Sequence[Group], key: str, chance: float, width: float) -> str:
    wide = width > 600
    box = Box(
        left=56 if wide else 44,
        top=34,
        width=width - (56 if wide else 44) - (120 if wide else 24),
        height=330 if wide else 300,
    )
    usages = [value for group in groups for run in group.runs if not math.isnan(value := run.final("usage"))]
    scale = log_scale(usages, box.left + 10, box.right - 10, zero_gap=40)
    panel = Panel(box=box, x=scale, y=_quality_scale(groups, key, chance, box))
    unit = "%" if key == "accuracy" else ""
    title = "Accuracy (% of answers right)" if key == "accuracy" else "Validation loss (nats per token)"
    panel.axes(title=title, y_unit=unit, x_unit="%", x_label="usage (% of attention slots open, log scale)")
    if scale.zero_gap:
        at = scale.start + scale.zero_gap * 0.6
        panel.marks.append(tag("path", class_="axis", d=path([(at - 4, box.bottom + 5), (at, box.bottom - 5)])))
        panel.marks.append(tag("path", class_="axis", d=path([(at + 1, box.bottom + 5), (at + 5, box.bottom - 5)])))
    if key == "accuracy" and not math.isnan(chance):
        panel.reference(chance, f"chance {exact_percent(chance)}", end=_free_end(panel, groups, key, chance))
    leaders, names = _labels(panel, groups, key, width)
    panel.marks += leaders
    for group in groups:
        _draw_group(panel, group, key)
    panel.marks += names
    words = "; ".join(f"{g.label}: {_with_interval(g)} at {percent(g.estimate('usage').mean)} usage" for g in groups)
    return picture(width, box.bottom + 40, panel.marks, label=f"{title} against usage. {words}.")


def _free_end(panel: Panel, groups: Sequence[Group], key: str, value: float) -> float:
    """Where along a horizontal line a short label meets the fewest marks: its right end, in pixels."""
    box, y = panel.box, panel.y(value)
    near = [panel.x(g.estimate("usage").mean) for g in groups if abs(panel.y(g.estimate(key).mean) - y) < 30]
    ends = [box.right - 4 - 0.25 * i * (box.width - 80) for i in range(4)]
    return max(ends, key=lambda end: min([abs(end - 30 - x) for x in near] + [120.0]))


def _draw_group(panel: Panel, group: Group, key: str) -> None:
    quality, usage = group.estimate(key), group.estimate("usage")
    panel.whisker(usage.mean, quality.low, quality.high, group.var)
    panel.whisker(quality.mean, usage.low, usage.high, group.var, horizontal=True)
    if len(group.runs) > 1:
        for run in group.runs:
            panel.dot((run.final("usage"), run.final(key)), group.var, shape=group.ink.marker, size=2.2, title=run.name)
    title = f"{group.label}: {_with_interval(group)} at {percent(usage.mean)} usage, {len(group.runs)} seed(s)"
    panel.dot((usage.mean, quality.mean), group.var, shape=group.ink.marker, size=5, title=title)


def _labels(panel: Panel, groups: Sequence[Group], key: str, width: float) -> tuple[list[str], list[str]]:
    """Names beside the marks; marks that lie close together share a column of names.

    Returns:
        The leaders, to be drawn below the marks, and the names, to be drawn above them.
    """
    anchors = [(panel.x(group.estimate("usage").mean), panel.y(group.estimate(key).mean)) for group in groups]
    leaders: list[str] = []
    names: list[str] = []
    for cluster in _clusters(anchors, [22 + 6.6 * len(group.label) for group in groups]):
        widest = max(len(groups[i].label) for i in cluster) * 6.6
        flip = max(anchors[i][0] for i in cluster) + 14 + widest > width
        edge = min(anchors[i][0] for i in cluster) - 14 if flip else max(anchors[i][0] for i in cluster) + 14
        places = spread([anchors[i][1] for i in cluster], 14, panel.box.top - 6, panel.box.bottom - 8)
        for i, place in zip(cluster, places, strict=True):
            x, y = anchors[i]
            if len(cluster) > 1:
                end = edge + 3 if flip else edge - 3
                leaders.append(tag("path", class_="leader", d=path([(x, y), (end, place)])))
            style = f"fill:{groups[i].var}"
            anchor = "end" if flip else "start"
            names.append(text(groups[i].label, edge, place + 4, class_="direct halo", text_anchor=anchor, style=style))
    return leaders, names


def _clusters(anchors: Sequence[tuple[float, float]], widths: Sequence[float]) -> list[list[int]]:
    """Indices of marks whose names would run into a neighbour, top to bottom; `widths` are those of mark and name."""
    clusters: list[list[int]] = []
    for i, (x, y) in enumerate(anchors):
        near = [c for c in clusters if any(_collide((x, y), widths[i], anchors[k], widths[k]) for k in c)]
        merged = [i, *(k for cluster in near for k in cluster)]
        clusters = [cluster for cluster in clusters if cluster not in near] + [merged]
    return [sorted(cluster, key=lambda k: anchors[k][1]) for cluster in clusters]


def _collide(a: tuple[float, float], width_a: float, b: tuple[float, float], width_b: float) -> bool:
    left, width, right = (a, width_a, b) if a[0] <= b[0] else (b, width_b, a)
    return right[0] - left[0] < width and abs(a[1] - b[1]) < 26


def _quality_scale(groups: Sequence[Group], key: str, chance: float, box: Box) -> Scale:
    if key == "accuracy":
        return Scale(low=0, high=1.0, start=box.bottom - 26, end=box.top + 12)
    values = [run.final(key) for group in groups for run in group.runs]
    values += [end for group in groups for end in (group.estimate(key).low, group.estimate(key).high)]
    return linear_scale(values, box.bottom - 8, box.top + 4)


def _key(group: Group) -> str:
    return "loss" if group.is_text else "accuracy"


def _quality(group: Group) -> Estimate:
    return group.estimate(_key(group))


def _with_interval(group: Group) -> str:
    quality = _quality(group)
    write = _loss_words if _key(group) == "loss" else percent
    ends = interval(quality.low, quality.high, write)
    noun = " nats per token" if _key(group) == "loss" else ""
    return f"{write(quality.mean)}{noun}" + ("" if ends == MISSING else f" {ends}")


def _loss_words(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.4f}" if abs(value) < 10 else significant(value, 4)


def _same_usage(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return False
    if a <= 0 or b <= 0:
        return a == b
    return max(a, b) / min(a, b) <= EQUAL_USAGE
