"""The savings section: measured milliseconds beside counted FLOPs, and in words where routing costs more than dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.figure import Cell, Data, Figure
from turnout.report.groups import arm_ink
from turnout.report.numbers import percent, ratio, significant
from turnout.report.palette import base_name
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import Run, number
from turnout.report.svg import linear_scale, log_scale, path, tag, text, tick_label

KINDS = {
    "train_step": ("Train step", "ms per step"),
    "prefill": ("Prefill", "ms per batch"),
    "decode": ("Decode, one token", "ms per token"),
}
ARMS = ("dense", "static_hybrid", "routed", "local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One row of savings.json with numbers checked; NaN where a number is missing."""

    what: str
    arm: str
    length: float
    batch: float
    ms: float
    low: float
    high: float
    flops: float
    usage: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Routed against dense and the static hybrid at one length; ratios are routed ÷ other, below 1 is cheaper.

    Attributes:
        ms: arm → measured median.
        to_dense: measured ratio.
        to_hybrid: measured ratio.
        flops_to_dense: counted ratio.
        flops_to_hybrid: counted ratio.
        verdict: against dense: "saves 48 %", "costs 30 % more" or "no clear difference" (the middle 60 % overlap).
        verdict_hybrid: likewise against the static hybrid.
    """

    what: str
    length: int
    batch: int
    usage: float
    ms: dict[str, float]
    to_dense: float
    to_hybrid: float
    flops_to_dense: float
    flops_to_hybrid: float
    verdict: str
    verdict_hybrid: str

    @property
    def order(self) -> tuple[int, str]:
        """Sorts and groups comparisons by kind of work."""
        return _order(self.what)


def timings(run: Run) -> list[Timing]:
    """The usable rows of savings.json: those that name what, arm and length."""
    found = []
    for row in run.savings:
        length = number(row, "length")
        if math.isnan(length) or length <= 0 or not row.get("what") or not row.get("arm"):
            continue
        found.append(
            Timing(
                what=str(row["what"]),
                arm=base_name(str(row["arm"])),
                length=length,
                batch=number(row, "batch"),
                ms=number(row, "ms"),
                low=number(row, "ms_p20"),
                high=number(row, "ms_p80"),
                flops=number(row, "flops"),
                usage=number(row, "usage"),
            )
        )
    return found


def compare(rows: Sequence[Timing]) -> list[Comparison]:
    """One comparison per (what, length, batch) that has a routed row."""
    table = {(row.what, row.length, _batch(row), row.arm): row for row in rows}
    found = []
    for row in sorted(
        (row for row in rows if row.arm == "routed"), key=lambda row: (_order(row.what), row.length, _batch(row))
    ):
        others = {arm: table.get((row.what, row.length, _batch(row), arm)) for arm in ARMS}
        dense, hybrid = others["dense"], others["static_hybrid"]
        found.append(
            Comparison(
                what=row.what,
                length=int(row.length),
                batch=_batch(row),
                usage=row.usage,
                ms={arm: other.ms for arm, other in others.items() if other},
                to_dense=_divide(row.ms, dense.ms if dense else math.nan),
                to_hybrid=_divide(row.ms, hybrid.ms if hybrid else math.nan),
                flops_to_dense=_divide(row.flops, dense.flops if dense else math.nan),
                flops_to_hybrid=_divide(row.flops, hybrid.flops if hybrid else math.nan),
                verdict=_verdict(row, dense),
                verdict_hybrid=_verdict(row, hybrid),
            )
        )
    return found


def sentences(found: Sequence[Comparison]) -> list[tuple[str, str]]:
    """(kind of work, words): where routing pays, where it costs more, and how the counted FLOPs compare."""
    words: list[tuple[str, str]] = []
    for what in sorted({item.what for item in found}, key=_order):
        items = [item for item in found if item.what == what and not math.isnan(item.to_dense)]
        if not items:
            continue
        name = KINDS.get(what, (what, ""))[0]
        if len(items) == 1:
            words.append((name, _one_length(items[0])))
            continue
        line = f"{_clause(items, 'the time of dense attention', 'to_dense', 'verdict')}."
        line = line[:1].upper() + line[1:]
        hybrid = [item for item in items if not math.isnan(item.to_hybrid)]
        if hybrid:
            line += f" Against the static hybrid, {_clause(hybrid, 'its time', 'to_hybrid', 'verdict_hybrid')}."
        longest = max(items, key=lambda item: item.length)
        if not math.isnan(longest.flops_to_dense):
            line += (
                f" At T={longest.length:,} the counted FLOPs are {ratio(longest.flops_to_dense)} those of dense, "
                f"the measured time {ratio(longest.to_dense)}."
            )
        words.append((name, line))
    return words


def savings_figure(run: Run, rows: Sequence[Timing], *, name: str = "savings") -> Figure:
    """Two rows of panels, measured time above counted FLOPs; one column per kind of work."""
    kinds = sorted({row.what for row in rows}, key=_order)
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
        for row in sorted(rows, key=lambda row: (_order(row.what), row.arm, row.length))
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


def verdict_css(verdict: str) -> str:
    """Class of a verdict's cell."""
    return "good" if verdict.startswith("saves") else "bad" if verdict.startswith("costs") else "even"


def step_ratio(run: Run) -> tuple[float, float, float] | None:
    """(routed ÷ dense, routed ms, dense ms) of a train step at the run's own length, or None."""
    for item in compare(timings(run)):
        if item.what == "train_step" and item.length == run.length and not math.isnan(item.to_dense):
            return item.to_dense, item.ms["routed"], item.ms["dense"]
    return None


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
        batches = sorted({_batch(row) for row in mine})
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
        labels.append((points[-1][1], arm.replace("_", " "), colour))
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
        words = row.arm.replace("_", " ")
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


def _clause(items: Sequence[Comparison], other: str, key: str, verdict: str) -> str:
    """Where routing costs more, where it pays, where neither is clear; `other` says what a ratio is of."""
    by_verdict: dict[str, list[Comparison]] = {"costs": [], "saves": [], "no": []}
    for item in items:
        by_verdict.get(getattr(item, verdict).split()[0], []).append(item)
    measured = sorted({item.length for item in items})
    places = {word: _lengths(chosen, measured) for word, chosen in by_verdict.items() if chosen}
    ratios = {word: _range([getattr(item, key) for item in chosen]) for word, chosen in by_verdict.items() if chosen}
    parts = []
    if by_verdict["costs"]:
        parts.append(f"routing costs more {places['costs']} ({ratios['costs']} {other})")
    if by_verdict["saves"]:
        subject = "pays" if parts else "routing pays"
        parts.append(f"{subject} {places['saves']} ({ratios['saves']} {other})")
    if by_verdict["no"]:
        parts.append(f"{'makes' if parts else 'routing makes'} no clear difference {places['no']}")
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def _one_length(item: Comparison) -> str:
    """The sentence for timings of a single length."""
    words = f"At T={item.length:,} routing takes {ratio(item.to_dense)} the time of dense attention ({item.verdict})"
    if not math.isnan(item.to_hybrid):
        words += f" and {ratio(item.to_hybrid)} that of the static hybrid ({item.verdict_hybrid})"
    if not math.isnan(item.flops_to_dense):
        beside = f" and {ratio(item.flops_to_hybrid)}" if not math.isnan(item.flops_to_hybrid) else ""
        words += f"; the counted FLOPs are {ratio(item.flops_to_dense)}{beside}"
    return words + "."


def _lengths(items: Sequence[Comparison], measured: Sequence[int]) -> str:
    """`at every length measured`, `at T=512 to 2,048` when nothing measured lies between unnamed, else a list."""
    values = sorted({item.length for item in items})
    if len(values) == len(measured) > 1:
        return "at every length measured"
    between = [value for value in measured if values[0] <= value <= values[-1]]
    if len(values) > 2 and values == between:
        return f"at T={values[0]:,} to {values[-1]:,}"
    head, last = ", ".join(f"{value:,}" for value in values[:-1]), f"{values[-1]:,}"
    return f"at T={head} and {last}" if head else f"at T={last}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return ratio(low) if ratio(low) == ratio(high) else f"{ratio(low)} to {ratio(high)}"


def _verdict(routed: Timing, other: Timing | None) -> str:
    if other is None or math.isnan(routed.ms) or math.isnan(other.ms) or other.ms <= 0:
        return "not measured"
    overlap = routed.low <= other.high and other.low <= routed.high
    relative = routed.ms / other.ms
    if overlap or 0.98 < relative < 1.02:
        return "no clear difference"
    return f"saves {100 * (1 - relative):.0f} %" if relative < 1 else f"costs {100 * (relative - 1):.0f} % more"


def _divide(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan


def _batch(row: Timing) -> int:
    return 0 if math.isnan(row.batch) else int(row.batch)


def _order(what: str) -> tuple[int, str]:
    return (list(KINDS).index(what) if what in KINDS else len(KINDS), what)
