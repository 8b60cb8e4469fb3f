"""The bill of inference: what decoding costs by length of context, from rows of `turnout bench inference`.

One figure a kind of work and setting; quantities that no row has are not drawn. Rows of another shape are drawn too,
as long as they name an arm and a length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from turnout.report.figure import Cell, Data, Figure
from turnout.report.numbers import significant
from turnout.report.palette import base_name, ink
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import number
from turnout.report.svg import linear_scale, log_scale, tag, text, tick_label

Row = dict[str, Any]
Curve = list[tuple[float, float]]

QUANTITIES = {
    "ms": "Time (ms)",
    "ms_per_token": "Time of a token (ms)",
    "tokens_per_s": "Tokens per second",
    "answer_tokens_per_s": "Tokens per second, prompt included",
    "kv_bytes": "Keys and values read (bytes)",
    "peak_bytes": "Peak memory (bytes)",
    "joule_per_token": "Energy of a token (J)",
}
LENGTHS = ("context", "length", "n", "prompt")
# What splits rows into figures, and how a figure's title says it.
SETTINGS = {
    "batch": "batch {}",
    "layers": "{} layers",
    "width": "width {}",
    "usage": "usage {}",
    "dtype": "{}",
    "device": "{}",
}


def bill_figures(rows: Sequence[Row]) -> list[Figure]:
    """One figure a kind of work and setting, with a panel for every quantity that was measured."""
    rows = [row for row in rows if _length(row) > 0 and row.get("arm")]
    settings = [key for key in SETTINGS if len({str(_of(row, key)) for row in rows}) > 1]
    some_compiled = any(_of(row, "compiled") for row in rows)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        what = str(_of(row, "what") or "inference")
        told = [SETTINGS[key].format(_of(row, key)) for key in settings]
        # Only the steps are compiled, a prompt is the same either way.
        if some_compiled and what != "prefill":
            told.append("compiled" if _of(row, "compiled") else "not compiled")
        groups.setdefault((what, ", ".join(told)), []).append(row)
    found = [(len({_length(row) for row in mine}), _figure(*key, mine)) for key, mine in groups.items()]
    # Curves say more than single lengths, so they come first.
    return [figure for _, figure in sorted(found, key=lambda item: -item[0]) if figure is not None]


def _figure(what: str, told: str, rows: Sequence[Row]) -> Figure | None:
    measured: dict[str, dict[str, dict[float, float]]] = {}
    for quantity in QUANTITIES:
        for row in rows:
            value = number(_all(row), quantity)
            if value > 0:
                # Rows are appended: the last one of a length is the newest.
                measured.setdefault(quantity, {}).setdefault(str(row["arm"]), {})[_length(row)] = value
    if not measured:
        return None
    panels = {
        quantity: {arm: sorted(points.items()) for arm, points in arms.items()} for quantity, arms in measured.items()
    }
    title = f"{what}, {told}" if told else what
    lengths = sorted({_length(row) for row in rows})
    wide, narrow = both_sizes(lambda width: _draw(title, panels, lengths, width))
    devices = ", ".join(sorted({str(row.get("device")) for row in rows if row.get("device")}))
    commits = ", ".join(sorted({str(row.get("commit"))[:10] for row in rows if row.get("commit")}))
    cells: list[list[Cell]] = [
        [quantity, arm, x, y] for quantity, arms in panels.items() for arm, points in arms.items() for x, y in points
    ]
    where = f"{lengths[0]:,.0f} tokens of context. " if len(lengths) == 1 else "Axes are logarithmic. "
    return Figure(
        title=title[:1].upper() + title[1:],
        wide=wide,
        narrow=narrow,
        caption=f"{where}{devices} · commit {commits}.",
        data=Data(name=f"inference_{what}_{told}", columns=["quantity", "arm", "length", "value"], rows=cells),
    )


def _draw(title: str, panels: dict[str, dict[str, Curve]], lengths: Sequence[float], width: float) -> str:
    columns = 2 if width > 600 else 1
    each = width / columns
    curves = len(lengths) > 1
    height = 150.0 if curves else 20.0 * max(len(arms) for arms in panels.values()) + 6
    pitch = height + (70 if curves else 46)
    marks: list[str] = []
    for i, (quantity, arms) in enumerate(panels.items()):
        left, top = (i % columns) * each, 28 + (i // columns) * pitch
        box = Box(left=left + (58 if curves else 96), top=top, width=each - (58 if curves else 96) - 104, height=height)
        marks += _curves(box, quantity, arms) if curves else _bars(box, quantity, arms)
    told = "; ".join(
        f"{QUANTITIES[quantity]}: " + ", ".join(f"{arm} {points[-1][1]:.3g}" for arm, points in arms.items())
        for quantity, arms in panels.items()
    )
    return picture(
        width, 28 + -(-len(panels) // columns) * pitch - 10, marks, label=f"{title}. At the longest: {told}."
    )


def _curves(box: Box, quantity: str, arms: dict[str, Curve]) -> list[str]:
    every = [point for points in arms.values() for point in points]
    x = log_scale([length for length, _ in every], box.left + 6, box.right - 6, kind="log2")
    panel = Panel(box=box, x=x, y=log_scale([value for _, value in every], box.bottom, box.top))
    panel.axes(title=QUANTITIES[quantity], x_label="tokens of context")
    labels = []
    for arm, points in arms.items():
        panel.line(points, _colour(arm), width=1.9)
        for length, value in points:
            words = f"{arm}, {length:,.0f} tokens: {value:.4g}"
            panel.dot((length, value), _colour(arm), shape=ink(base_name(arm)).marker, title=words)
        labels.append((points[-1][1], arm.replace("_", " "), _colour(arm)))
    panel.end_labels(labels)
    return panel.marks


def _bars(box: Box, quantity: str, arms: dict[str, Curve]) -> list[str]:
    x = linear_scale([points[-1][1] for points in arms.values()], box.left, box.right, floor=0.0)
    marks = [text(QUANTITIES[quantity], box.left, box.top - 8, class_="panel-title")]
    for i, (arm, points) in enumerate(arms.items()):
        y, value = box.top + 20 * i + 4, points[-1][1]
        name = {"class_": "row-label", "text_anchor": "end", "style": f"fill:{_colour(arm)}"}
        marks.append(text(arm.replace("_", " "), box.left - 8, y + 11, **name))
        size = {"x": box.left, "y": y, "width": max(1.0, x(value) - box.left), "height": 14.0}
        marks.append(tag("rect", class_="bar", style=f"fill:{_colour(arm)}", **size))
        marks.append(
            text(
                tick_label(float(f"{value:.3g}")) if value >= 1e4 else significant(value),
                x(value) + 6,
                y + 11,
                class_="tick",
            )
        )
    marks.append(tag("line", class_="axis", x1=box.left, x2=box.left, y1=box.top, y2=box.bottom))
    return marks


def _colour(arm: str) -> str:
    found = ink(base_name(arm))
    return f"light-dark({found.light},{found.dark})"


def _length(row: Row) -> float:
    """Tokens that the row is about, NaN when it does not say."""
    return next((value for key in LENGTHS if (value := number(_all(row), key)) > 0), math.nan)


def _of(row: Row, key: str) -> Any:
    case = row.get("case")
    return case.get(key) if isinstance(case, dict) and key in case else row.get(key)


def _all(row: Row) -> Row:
    """The row with its case unfolded; measured numbers win over settings of the same name."""
    case = row.get("case")
    return {**(case if isinstance(case, dict) else {}), **row}
