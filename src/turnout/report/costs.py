"""The figure of the savings section: measured time and energy above counted FLOPs, by length or as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.figure import Cell, Data, Figure
from turnout.report.groups import arm_ink
from turnout.report.numbers import percent, plural, ratio, significant
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import Run, number
from turnout.report.savings import ARMS, KINDS, Timing, batch_of, order
from turnout.report.svg import linear_scale, log_scale, path, tag, text, tick_label
from turnout.report.units import energy_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One row of panels.

    Attributes:
        field: of `Timing`.
        title: of a panel, after the kind of work.
        unit: below the axis of bars, and behind a value.
        height: of a panel over several lengths.
        spread: whiskers from `Timing.low` to `Timing.high`.
    """

    field: str
    title: str
    unit: str
    height: float
    spread: bool = False

    def of(self, row: Timing) -> float:
        """The number of a row, NaN when it is missing."""
        return float(getattr(row, self.field))


TIME = Quantity(field="ms", title="", unit="milliseconds", height=190, spread=True)
OTHERS = (
    Quantity(field="joules", title="measured energy (J)", unit="joules", height=130),
    Quantity(field="flops", title="counted FLOPs", unit="FLOPs", height=130),
)


def savings_figure(run: Run, rows: Sequence[Timing], *, name: str = "savings") -> Figure:
    """Rows of panels: measured time, energy where the device reports it, counted FLOPs; a column per kind of work."""
    kinds = sorted({row.what for row in rows}, key=order)
    shown = [TIME, *(item for item in OTHERS if any(not math.isnan(item.of(row)) for row in rows))]
    wide, narrow = both_sizes(lambda width: _draw(run, rows, kinds, shown, width))
    device = run.savings_meta.get("device") or run.device
    threads = run.savings_meta.get("threads")
    where = f"{device}, {plural(threads, 'thread')}" if isinstance(threads, int) else str(device)
    lengths = sorted({row.length for row in rows})
    how = f"T={lengths[0]:,.0f}; in brackets the ratio to dense." if len(lengths) == 1 else "Both axes are logarithmic."
    timed = [n for row in run.savings if not math.isnan(n := number(row, "n"))]
    calls = f"n = {min(timed):,.0f} or more timed calls. " if timed else ""
    cells: list[list[Cell]] = [
        [row.what, row.arm, row.length, row.batch, row.ms, row.low, row.high, row.joules, row.flops, row.usage]
        for row in sorted(rows, key=lambda row: (order(row.what), row.arm, row.length))
    ]
    return Figure(
        title="What a step costs: measured and counted",
        wide=wide,
        narrow=narrow,
        caption="Time: measured median, whiskers from the 20th to the 80th percentile, the router's own cost included. "
        f"{energy_words(run)} FLOPs are counted from the shapes. {how} {calls}Model of this run, seed {run.seed} · "
        f"{where} · commit {run.commit}.",
        data=Data(
            name=name,
            columns=["what", "arm", "length", "batch", "ms", "ms_p20", "ms_p80", "joules", "flops", "usage"],
            rows=cells,
        ),
    )


def _draw(run: Run, rows: Sequence[Timing], kinds: Sequence[str], shown: Sequence[Quantity], width: float) -> str:
    wide = width > 600
    columns = len(kinds) if wide else 1
    each = width / max(columns, 2 if wide else 1)
    marks: list[str] = []
    one_length = len({row.length for row in rows}) == 1
    draw = _bars if one_length else _panel
    arms = len({row.arm for row in rows})
    left_margin, right_margin = (82.0, 92.0) if one_length else (46.0, 84.0)
    bottom = -36.0
    for i, what in enumerate(kinds):
        mine = [row for row in rows if row.what == what]
        left = (i if wide else 0) * each
        top = 30.0 if wide else bottom + 66
        name, unit = KINDS.get(what, (what, "ms"))
        batches = sorted({batch_of(row) for row in mine})
        batch = f", batch {batches[0]}" if len(batches) == 1 and batches[0] > 0 else ""
        for item in shown:
            if item is not TIME and all(math.isnan(item.of(row)) for row in mine):
                continue
            height = 24.0 * arms if one_length else item.height
            box = Box(left=left + left_margin, top=top, width=each - left_margin - right_margin, height=height)
            title = f"{name}: {item.title}" if item.title else f"{name}{batch} ({unit})"
            marks += draw(run, mine, box, title, item)
            top = box.bottom + 66
        bottom = max(bottom, top - 66) if wide else top - 66
    names = ", ".join(KINDS.get(what, (what, ""))[0] for what in kinds)
    told = ", ".join(item.unit for item in shown)
    label = f"{told[:1].upper()}{told[1:]} by sequence length: {names}. The table has the numbers."
    return picture(width, bottom + 42, marks, label=label)


def _panel(run: Run, rows: Sequence[Timing], box: Box, title: str, item: Quantity) -> list[str]:
    values = [
        value for row in rows for value in ((item.of(row), row.low, row.high) if item.spread else (item.of(row),))
    ]
    lengths = [row.length for row in rows]
    x = log_scale(lengths, box.left + 8, box.right - 8, kind="log2")
    panel = Panel(box=box, x=x, y=log_scale(values, box.bottom, box.top))
    panel.axes(title=title, x_label="sequence length (tokens)")
    labels = []
    for arm in sorted({row.arm for row in rows}, key=lambda arm: ARMS.index(arm) if arm in ARMS else len(ARMS)):
        mine = sorted((row for row in rows if row.arm == arm), key=lambda row: row.length)
        colour, style = arm_ink(arm, run)
        points = [(row.length, item.of(row)) for row in mine]
        points = [point for point in points if not math.isnan(point[1])]
        if not points:
            continue
        panel.line(points, colour, width=2.2 if arm == "routed" else 1.4)
        for row in mine:
            value = item.of(row)
            if item.spread:
                panel.whisker(row.length, row.low, row.high, colour)
            shown = f"{significant(value)} {item.unit}"
            used = f", usage {percent(row.usage)}" if not math.isnan(row.usage) else ""
            panel.dot(
                (row.length, value),
                colour,
                shape=style.marker,
                size=3.2,
                title=f"{arm}, T={row.length:,.0f}: {shown}{used}",
            )
        labels.append((points[-1][1], _arm_words(arm), colour))
    panel.end_labels(labels)
    return [tag("g", *panel.marks)]


def _bars(run: Run, rows: Sequence[Timing], box: Box, title: str, item: Quantity) -> list[str]:
    """One bar per arm from 0, with whiskers and the ratio to dense: for timings of a single length."""
    mine = sorted((row for row in rows), key=lambda row: ARMS.index(row.arm) if row.arm in ARMS else len(ARMS))
    values = [item.of(row) for row in mine] + [row.high for row in mine if item.spread]
    x = linear_scale(values, box.left, box.right, floor=0.0)
    marks = [text(title, box.left - 76, box.top - 8, class_="panel-title")]
    for value in x.ticks(3):
        marks.append(tag("line", class_="grid", x1=x(value), x2=x(value), y1=box.top, y2=box.bottom))
        marks.append(text(tick_label(value), x(value), box.bottom + 15, class_="tick", text_anchor="middle"))
    marks.append(text(item.unit, box.right, box.bottom + 31, class_="axis-label", text_anchor="end"))
    dense = next((item.of(row) for row in mine if row.arm == "dense"), math.nan)
    pitch = box.height / max(1, len(mine))
    for i, row in enumerate(mine):
        value = item.of(row)
        if math.isnan(value):
            continue
        y = box.top + (i + 0.5) * pitch
        colour, _ = arm_ink(row.arm, run)
        style = f"fill:{colour}"
        words = _arm_words(row.arm)
        marks.append(text(words, box.left - 6, y + 4, class_="direct", text_anchor="end", style=style))
        marks.append(
            tag("rect", class_="bar", x=box.left, y=y - 7, width=max(1.0, x(value) - box.left), height=14, style=style)
        )
        end = x(value)
        if item.spread and not math.isnan(row.low) and not math.isnan(row.high):
            marks.append(
                tag("path", class_="whisker", d=path([(x(row.low), y), (x(row.high), y)]), style="stroke:var(--ink)")
            )
            end = max(end, x(row.high))
        shown = tick_label(float(f"{value:.3g}")) if item.field == "flops" else significant(value)
        beside = f" ({ratio(value / dense)})" if dense > 0 and row.arm != "dense" else ""
        marks.append(text(f"{shown}{beside}", end + 6, y + 4, class_="row-label"))
    marks.append(tag("line", class_="axis", x1=box.left, x2=box.left, y1=box.top, y2=box.bottom))
    return [tag("g", *marks)]


def _arm_words(arm: str) -> str:
    return "this run" if arm == "this" else arm.replace("_", " ")
