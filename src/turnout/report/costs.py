"""The figure of the savings section: measured milliseconds above counted FLOPs, by length or as bars for one length."""

from __future__ import annotations

import math
from collections.abc import Sequence

from turnout.report.figure import Cell, Data, Figure
from turnout.report.groups import arm_ink
from turnout.report.numbers import percent, ratio, significant
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import Run, number
from turnout.report.savings import ARMS, KINDS, Timing, batch_of, order
from turnout.report.svg import linear_scale, log_scale, path, tag, text, tick_label


def savings_figure(run: Run, rows: Sequence[Timing], *, name: str = "savings") -> Figure:
    """Two rows of panels, measured time above counted FLOPs; one column per kind of work."""
    kinds = sorted({row.what for row in rows}, key=order)
    wide, narrow = both_sizes(lambda width: _draw(run, rows, kinds, width))
    device = run.savings_meta.get("device") or run.device
    threads = run.savings_meta.get("threads")
    where = f"{device}, {threads} threads" if threads else str(device)
    lengths = sorted({row.length for row in rows})
    how = f"T={lengths[0]:,.0f}; in brackets the ratio to dense." if len(lengths) == 1 else "Both axes are logarithmic."
    timed = [n for row in run.savings if not math.isnan(n := number(row, "n"))]
    calls = f"n = {min(timed):,.0f} or more timed calls. " if timed else ""
    cells: list[list[Cell]] = [
        [row.what, row.arm, row.length, row.batch, row.ms, row.low, row.high, row.flops, row.usage]
        for row in sorted(rows, key=lambda row: (order(row.what), row.arm, row.length))
    ]
    return Figure(
        title="What a step costs: measured and counted",
        wide=wide,
        narrow=narrow,
        caption="Upper row: measured median, whiskers from the 20th to the 80th percentile, the router's own cost "
        f"included. Lower row: FLOPs counted from the shapes. {how} {calls}Model of this run, seed {run.seed} · "
        f"{where} · commit {run.commit}.",
        data=Data(
            name=name,
            columns=["what", "arm", "length", "batch", "ms", "ms_p20", "ms_p80", "flops", "usage"],
            rows=cells,
        ),
    )


def _draw(run: Run, rows: Sequence[Timing], kinds: Sequence[str], width: float) -> str:
    wide = width > 600
    columns = len(kinds) if wide else 1
    each = width / max(columns, 2 if wide else 1)
    marks: list[str] = []
    one_length = len({row.length for row in rows}) == 1
    draw = _bars if one_length else _panel
    arms = len({row.arm for row in rows})
    heights = (24.0 * arms, 24.0 * arms) if one_length else (190.0, 130.0)
    left_margin, right_margin = (82.0, 92.0) if one_length else (46.0, 84.0)
    bottom = 0.0
    for i, what in enumerate(kinds):
        mine = [row for row in rows if row.what == what]
        left = (i if wide else 0) * each
        top = 30.0 if wide else 30.0 + i * (sum(heights) + 138)
        name, unit = KINDS.get(what, (what, "ms"))
        batches = sorted({batch_of(row) for row in mine})
        batch = f", batch {batches[0]}" if len(batches) == 1 and batches[0] > 0 else ""
        upper = Box(left=left + left_margin, top=top, width=each - left_margin - right_margin, height=heights[0])
        lower = Box(left=upper.left, top=upper.bottom + 66, width=upper.width, height=heights[1])
        marks += draw(run, mine, upper, f"{name}{batch} ({unit})", measured=True)
        if any(not math.isnan(row.flops) for row in mine):
            marks += draw(run, mine, lower, f"{name}: counted FLOPs", measured=False)
        bottom = lower.bottom + 42
    names = ", ".join(KINDS.get(what, (what, ""))[0] for what in kinds)
    return picture(
        width,
        bottom,
        marks,
        label=f"Measured milliseconds and counted FLOPs by sequence length: {names}. The table has the numbers.",
    )


def _panel(run: Run, rows: Sequence[Timing], box: Box, title: str, *, measured: bool) -> list[str]:
    values = [value for row in rows for value in ((row.ms, row.low, row.high) if measured else (row.flops,))]
    lengths = [row.length for row in rows]
    x = log_scale(lengths, box.left + 8, box.right - 8, kind="log2")
    panel = Panel(box=box, x=x, y=log_scale(values, box.bottom, box.top))
    panel.axes(title=title, x_label="sequence length (tokens)")
    labels = []
    for arm in sorted({row.arm for row in rows}, key=lambda arm: ARMS.index(arm) if arm in ARMS else len(ARMS)):
        mine = sorted((row for row in rows if row.arm == arm), key=lambda row: row.length)
        colour, style = arm_ink(arm, run)
        points = [(row.length, row.ms if measured else row.flops) for row in mine]
        points = [point for point in points if not math.isnan(point[1])]
        if not points:
            continue
        panel.line(points, colour, width=2.2 if arm == "routed" else 1.4)
        for row in mine:
            value = row.ms if measured else row.flops
            if measured:
                panel.whisker(row.length, row.low, row.high, colour)
            shown = f"{significant(value)} ms" if measured else f"{value:.3g} FLOPs"
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


def _bars(run: Run, rows: Sequence[Timing], box: Box, title: str, *, measured: bool) -> list[str]:
    """One bar per arm from 0, with whiskers and the ratio to dense: for timings of a single length."""
    mine = sorted((row for row in rows), key=lambda row: ARMS.index(row.arm) if row.arm in ARMS else len(ARMS))
    values = [value for row in mine for value in ((row.ms, row.high) if measured else (row.flops,))]
    x = linear_scale(values, box.left, box.right, floor=0.0)
    marks = [text(title, box.left - 76, box.top - 8, class_="panel-title")]
    for value in x.ticks(3):
        marks.append(tag("line", class_="grid", x1=x(value), x2=x(value), y1=box.top, y2=box.bottom))
        marks.append(text(tick_label(value), x(value), box.bottom + 15, class_="tick", text_anchor="middle"))
    unit = "milliseconds" if measured else "FLOPs"
    marks.append(text(unit, box.right, box.bottom + 31, class_="axis-label", text_anchor="end"))
    dense = next((row.ms if measured else row.flops for row in mine if row.arm == "dense"), math.nan)
    pitch = box.height / max(1, len(mine))
    for i, row in enumerate(mine):
        value = row.ms if measured else row.flops
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
        if measured and not math.isnan(row.low) and not math.isnan(row.high):
            marks.append(
                tag("path", class_="whisker", d=path([(x(row.low), y), (x(row.high), y)]), style="stroke:var(--ink)")
            )
            end = max(end, x(row.high))
        shown = significant(value) if measured else tick_label(float(f"{value:.3g}"))
        beside = f" ({ratio(value / dense)})" if dense > 0 and row.arm != "dense" else ""
        marks.append(text(f"{shown}{beside}", end + 6, y + 4, class_="row-label"))
    marks.append(tag("line", class_="axis", x1=box.left, x2=box.left, y1=box.top, y2=box.bottom))
    return [tag("g", *marks)]


def _arm_words(arm: str) -> str:
    return "this run" if arm == "this" else arm.replace("_", " ")
