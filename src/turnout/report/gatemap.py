"""The gate map: which layer opens its attention at which position, drawn so that a single open gate stays visible.

Positions are pooled by their *maximum* into columns of at least two pixels, and a mark is never narrower than three
pixels; the darkest marks are drawn last. The colour steps are few and named: the interesting range is wide.

Axes: L layers, T positions, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turnout.report.figure import Cell, Data, Figure
from turnout.report.gates import GateSnapshot
from turnout.report.groups import Group, provenance
from turnout.report.numbers import percent, plural
from turnout.report.plot import both_sizes, picture
from turnout.report.reading import summary_words
from turnout.report.run import Run
from turnout.report.svg import linear_scale, short, tag, text, tick_label

# Upper ends of the colour steps; 0 is drawn as nothing.
STEPS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.999, 1.0)
STEP_WORDS = ("under 1 %", "1 to 5 %", "5 to 25 %", "25 to 50 %", "50 to 75 %", "75 to 99.9 %", "always open")
COLOURS = "Colour: in what share of the mapped sequences the gate is open"
LEAST_MARK = 3.0
LEAST_COLUMN = 2.0


def level(frequency: float) -> int:
    """Colour step of a frequency: -1 for 0, else 0 … 6."""
    if frequency <= 0:
        return -1
    return next((i for i, upper in enumerate(STEPS) if frequency <= upper + 1e-12), len(STEPS) - 1)


def pool(row: Sequence[float], columns: int) -> list[float]:
    """Max-pool T values into at most `columns` columns, so that one open gate survives any reduction."""
    per = max(1, math.ceil(len(row) / max(1, columns)))
    return [max(row[i : i + per]) for i in range(0, len(row), per)]


def gate_figure(run: Run, snapshot: GateSnapshot) -> Figure:
    """Heat map of the mean frequency of an open gate, layer × position."""
    wide, narrow = both_sizes(lambda width: _draw(snapshot, width))
    rows: list[list[Cell]] = [
        [layer, i * snapshot.bin, value]
        for layer, row in zip(snapshot.index, snapshot.mean, strict=True)
        for i, value in enumerate(row)
        if value > 0
    ]
    binned = f" Each stored value is the mean over {snapshot.bin} neighbouring tokens." if snapshot.bin > 1 else ""
    return Figure(
        title="Where attention is spent: mean over sequences",
        wide=wide,
        narrow=narrow,
        caption=f"{COLOURS} at this layer and position. An empty rail means never. Neighbouring positions share a mark "
        f"by their maximum, and no mark is narrower than {LEAST_MARK:.0f} pixels.{binned} "
        f"Step {snapshot.step:,}. {provenance([run], sample=_sample([snapshot]))}.",
        data=Data(name="gates_mean", columns=["layer", "position", "open_frequency"], rows=rows),
    )


def evolution_figure(run: Run) -> Figure | None:
    """Small maps of the snapshots taken during training; None with fewer than two."""
    shots = run.snapshots
    if len(shots) < 2:
        return None
    chosen = [shots[round(i * (len(shots) - 1) / (min(8, len(shots)) - 1))] for i in range(min(8, len(shots)))]
    items = [
        _Thumbnail(
            title=f"step {shot.step:,}" + (f" · {shot.phase}" if shot.phase else ""), colour="var(--ink)", snapshot=shot
        )
        for shot in chosen
    ]
    wide, narrow = both_sizes(lambda width: _draw_thumbnails(items, width, columns=4 if width > 600 else 2))
    rows: list[list[Cell]] = [
        [shot.step, shot.phase, layer, opened]
        for shot in chosen
        for layer, opened in zip(shot.index, shot.open_per_sequence(), strict=True)
    ]
    return Figure(
        title="How the map came about: snapshots during training",
        wide=wide,
        narrow=narrow,
        caption=f"{COLOURS}; the lowest layer is the lowest rail. Under each map: open gates per sequence. "
        f"{provenance([run], sample=_sample(chosen))}.",
        data=Data(name="gates_training", columns=["step", "phase", "layer", "open_gates_per_sequence"], rows=rows),
    )


def comparison_figure(groups: Sequence[tuple[Group, Run]]) -> Figure:
    """One small map per mechanism, side by side, of the runs given (which all have gates)."""
    found = [(group, run, run.gates) for group, run in groups if run.gates]
    many_tasks = len({group.task for group, _, _ in found}) > 1
    items = [
        _Thumbnail(title=f"{group.label}, {group.task}" if many_tasks else group.label, colour=group.var, snapshot=shot)
        for group, _, shot in found
    ]
    wide, narrow = both_sizes(lambda width: _draw_thumbnails(items, width, columns=2 if width > 600 else 1))
    rows: list[list[Cell]] = [
        [run.name, group.label, layer, i * shot.bin, value]
        for group, run, shot in found
        for layer, row in zip(shot.index, shot.mean, strict=True)
        for i, value in enumerate(row)
        if value > 0
    ]
    return Figure(
        title="Where each mechanism spends attention",
        wide=wide,
        narrow=narrow,
        caption=f"{COLOURS}; position from left to right, the lowest layer is the lowest rail. Under each map: open "
        f"gates per sequence. One run per mechanism: {', '.join(run.name for _, run, _ in found)}. "
        f"{provenance([run for _, run, _ in found], sample=_sample([shot for _, _, shot in found]))}.",
        data=Data(name="gates_mean", columns=["run", "group", "layer", "position", "open_frequency"], rows=rows),
    )


def stacked_figure(title: str, runs: Mapping[str, Run]) -> Figure:
    """Small maps one above the other, by their names; every run has a map."""
    shots = {words: run.gates for words, run in runs.items() if run.gates}
    items = [_Thumbnail(title=words, colour="var(--ink)", snapshot=shot) for words, shot in shots.items()]
    wide, narrow = both_sizes(lambda width: _draw_thumbnails(items, width, columns=1))
    rows: list[list[Cell]] = [
        [words, layer, i * shot.bin, value]
        for words, shot in shots.items()
        for layer, row in zip(shot.index, shot.mean, strict=True)
        for i, value in enumerate(row)
        if value > 0
    ]
    steps = ", ".join(f"{shot.step:,}" for shot in shots.values())
    return Figure(
        title=title,
        wide=wide,
        narrow=narrow,
        caption=f"{COLOURS}; position from left to right, the lowest layer is the lowest rail. Steps {steps}. "
        f"{provenance(list(runs.values()), sample=_sample(list(shots.values())))}.",
        data=Data(name="gate_maps", columns=["map", "layer", "position", "open_frequency"], rows=rows),
    )


def _sample(shots: Sequence[GateSnapshot]) -> str:
    """`n = 64 sequences`, or "" when the files do not say."""
    sizes = [shot.n for shot in shots if shot.n]
    return f"n = {min(sizes):,} sequences" if sizes else ""


def _draw(snapshot: GateSnapshot, width: float) -> str:
    wide = width > 600
    left, right, top = (50.0, 150.0, 46.0) if wide else (24.0, 76.0, 46.0)
    layers = snapshot.layers
    row_height = 30.0 if layers <= 6 else 20.0 if layers <= 12 else 12.0
    plot = width - left - right
    bottom = top + layers * row_height
    marks = _query_marks(snapshot, left, plot, top - 8)
    marks.append(text("layer", 0, top - 10, class_="axis-label"))
    if wide:
        marks.append(text("open per sequence · usage", left + plot + 8, top - 10, class_="axis-label"))
    opened = snapshot.open_per_sequence()
    for layer in range(layers):
        y = top + (layers - 1 - layer) * row_height
        share = opened[layer] / snapshot.length
        gates = plural(opened[layer], "gate")
        words = f"{gates} · {percent(share)}" if wide else gates
        marks.append(
            text(str(snapshot.index[layer]), left - 8, y + row_height / 2 + 4, class_="tick", text_anchor="end")
        )
        marks.append(text(words, left + plot + 8, y + row_height / 2 + 4, class_="row-label"))
    marks += _rails(snapshot.mean, left, top, plot, row_height)
    x = linear_scale([0, snapshot.length - 1], left, left + plot)
    per_token = plot / snapshot.length
    ticks = [value for value in x.ticks(8 if wide else 4) if value < snapshot.length and float(value).is_integer()]
    last = float(snapshot.length - 1)
    ticks = [value for value in ticks if (last - value) * per_token > 34] + [last]
    for value in ticks:
        at = left + (value + 0.5) * per_token
        marks.append(tag("line", class_="axis", x1=at, x2=at, y1=bottom + 2, y2=bottom + 6))
        marks.append(
            text(
                tick_label(value) if value != last else f"{last:,.0f}",
                at,
                bottom + 19,
                class_="tick",
                text_anchor="middle",
            )
        )
    marks.append(text("position (token)", left + plot, bottom + 35, class_="axis-label", text_anchor="end"))
    legend, high = _legend(bottom + 58, width)
    words = f"Gate map, {layers} layers by {snapshot.length:,} positions. {summary_words(snapshot)}"
    return picture(width, bottom + 58 + high, marks + legend, label=words, css="gate-map")


def _legend(top: float, width: float) -> tuple[list[str], float]:
    """What the colour steps mean, and how high that is: in the picture, so that an exported one is read alone."""
    columns = len(STEPS) if width > 600 else 3
    each = width / columns if width <= 600 else 118.0
    marks = []
    for i, words in enumerate(STEP_WORDS):
        x, y = (i % columns) * each, top + (i // columns) * 17
        marks.append(tag("rect", class_=f"q{i}", x=x, y=y, width=18, height=10))
        marks.append(text(words, x + 24, y + 9, class_="tick"))
    return marks, 17.0 * math.ceil(len(STEPS) / columns)


def _rails(mean: Sequence[Sequence[float]], left: float, top: float, plot: float, row_height: float) -> list[str]:
    """One rail per layer, layer 0 lowest, and one path per colour step."""
    layers = len(mean)
    marks: list[str] = []
    shapes: list[list[str]] = [[] for _ in STEPS]
    inner = max(2.0, row_height - max(2.0, row_height * 0.28))
    for layer, row in enumerate(mean):
        y = top + (layers - 1 - layer) * row_height + (row_height - inner) / 2
        marks.append(tag("rect", class_="rail", x=left, y=y, width=plot, height=inner))
        pooled = pool(row, int(plot / LEAST_COLUMN))
        step = plot / len(pooled) if len(pooled) == len(row) else plot * math.ceil(len(row) / len(pooled)) / len(row)
        for first, last, found in _runs([level(value) for value in pooled]):
            start, end = left + first * step, min(left + plot, left + last * step)
            if end - start < LEAST_MARK:
                middle = (start + end) / 2
                start, end = middle - LEAST_MARK / 2, middle + LEAST_MARK / 2
            shapes[found].append(
                f"M{short(start)} {short(y)}h{short(end - start)}v{short(inner)}h{short(start - end)}z"
            )
    marks += [tag("path", class_=f"q{i}", d="".join(found)) for i, found in enumerate(shapes) if found]
    return marks


def _runs(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first, one past last, level) of equal neighbours, empty ones left out."""
    found: list[tuple[int, int, int]] = []
    for i, value in enumerate(levels):
        if value < 0:
            continue
        if found and found[-1][1] == i and found[-1][2] == value:
            found[-1] = (found[-1][0], i + 1, value)
        else:
            found.append((i, i + 1, value))
    return found


def _query_marks(snapshot: GateSnapshot, left: float, plot: float, y: float) -> list[str]:
    """A small triangle over every position that holds a query in a stored sequence, unless nearly all do."""
    if snapshot.bin > 1 or not snapshot.sequences:
        return []
    at = {position for item in snapshot.sequences for position in item.at}
    if not at or len(at) > snapshot.length / 4:
        return []
    per = plot / snapshot.length
    shapes = [f"M{short(left + (i + 0.5) * per - 4)} {short(y - 7)}h8l-4 7z" for i in sorted(at)]
    marks = [tag("path", class_="query", d="".join(shapes))]
    last = left + (max(at) + 0.5) * per
    words = "query positions" if len(at) > 1 else "query position"
    anchor = {"text_anchor": "end"} if last > left + plot / 2 else {}
    return [*marks, text(words, last + (4 if anchor else -4), y - 11, class_="query-label", **anchor)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Thumbnail:
    """A small map with its name and colour."""

    title: str
    colour: str
    snapshot: GateSnapshot


def _draw_thumbnails(items: Sequence[_Thumbnail], width: float, *, columns: int) -> str:
    gap = 22.0
    each = (width - gap * (columns - 1) - 12) / columns
    layers = max(item.snapshot.layers for item in items)
    row_height = 14.0 if layers <= 6 else 8.0
    pitch = layers * row_height + 54
    many_lengths = len({item.snapshot.length for item in items}) > 1
    marks: list[str] = []
    words: list[str] = []
    for i, item in enumerate(items):
        left, top = 6 + (i % columns) * (each + gap), 24 + (i // columns) * pitch
        opened = plural(math.fsum(item.snapshot.open_per_sequence()), "open gate")
        size = f" · T = {item.snapshot.length:,}" if many_lengths else ""
        marks.append(text(item.title, left, top - 7, class_="panel-title", style=f"fill:{item.colour}"))
        marks += _rails(item.snapshot.mean, left, top, each, row_height)
        marks.append(text(f"{opened}{size}", left, top + item.snapshot.layers * row_height + 15, class_="tick"))
        words.append(f"{item.title}: {opened}")
    bottom = math.ceil(len(items) / columns) * pitch + 8
    legend, high = _legend(bottom, width)
    return picture(width, bottom + high, marks + legend, label=f"Gate maps. {'; '.join(words)}.", css="gate-map")
