"""The bill of inference: what decoding costs by length of context, from rows of `turnout bench inference`.

One figure a kind of work and quantity; quantities that no row has are not drawn. Rows of another shape are drawn too,
as long as they name an arm and a length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from turnout.report.figure import Cell, Data, Figure
from turnout.report.palette import base_name, ink
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import number
from turnout.report.svg import log_scale

Row = dict[str, Any]
Curve = list[tuple[float, float]]

QUANTITIES = {
    "ms": "Time (ms, log scale)",
    "ms_per_token": "Time of a token (ms, log scale)",
    "tokens_per_s": "Tokens per second (log scale)",
    "answer_tokens_per_s": "Tokens per second, prompt included (log scale)",
    "kv_bytes": "Keys and values read (bytes, log scale)",
    "peak_bytes": "Peak memory (bytes, log scale)",
    "joule_per_token": "Energy of a token (J, log scale)",
}
LENGTHS = ("context", "length", "n", "prompt")
SETTINGS = ("batch", "device", "layers", "width", "dtype", "usage")


def bill_figures(rows: Sequence[Row]) -> list[Figure]:
    """Every quantity against the length, one line an arm, one figure a kind of work and setting."""
    rows = [row for row in rows if _length(row) > 0]
    settings = [key for key in SETTINGS if len({str(_of(row, key)) for row in rows}) > 1]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        told = ", ".join(f"{key} {_of(row, key)}" for key in settings)
        groups.setdefault((str(_of(row, "what") or "inference"), told), []).append(row)
    found = []
    for (what, told), mine in groups.items():
        for quantity in QUANTITIES:
            figure = _figure(what, told, quantity, mine)
            if figure is not None:
                found.append(figure)
    return found


def _figure(what: str, told: str, quantity: str, rows: Sequence[Row]) -> Figure | None:
    curves: dict[str, Curve] = {}
    for row in rows:
        length = _length(row)
        value = number(_all(row), quantity)
        if length > 0 and value > 0 and row.get("arm"):
            curves.setdefault(str(row["arm"]), []).append((length, value))
    if not curves:
        return None
    curves = {arm: sorted(points) for arm, points in curves.items()}
    title = f"{what}, {told}" if told else what
    wide, narrow = both_sizes(lambda width: _draw(title, quantity, curves, width))
    devices = ", ".join(sorted({str(row.get("device")) for row in rows if row.get("device")}))
    commits = ", ".join(sorted({str(row.get("commit"))[:10] for row in rows if row.get("commit")}))
    cells: list[list[Cell]] = [[arm, x, y] for arm, points in curves.items() for x, y in points]
    return Figure(
        title=f"{title}: {QUANTITIES[quantity].partition(' (')[0].lower()}",
        wide=wide,
        narrow=narrow,
        caption=f"One line an arm, one dot a measurement. {devices} · commit {commits}.",
        data=Data(name=f"inference_{what}_{told}_{quantity}", columns=["arm", "length", quantity], rows=cells),
    )


def _draw(title: str, quantity: str, curves: dict[str, Curve], width: float) -> str:
    every = [point for points in curves.values() for point in points]
    box = Box(left=64, top=30, width=width - (250 if width > 600 else 160), height=250)
    x = log_scale([length for length, _ in every], box.left + 6, box.right - 6, kind="log2")
    panel = Panel(box=box, x=x, y=log_scale([value for _, value in every], box.bottom, box.top))
    panel.axes(title=QUANTITIES[quantity], x_label="tokens of context (log₂ scale)")
    labels = []
    for arm, points in curves.items():
        found = ink(base_name(arm))
        colour = f"light-dark({found.light},{found.dark})"
        panel.line(points, colour, width=1.9)
        for length, value in points:
            panel.dot((length, value), colour, shape=found.marker, title=f"{arm}, {length:,.0f} tokens: {value:.4g}")
        labels.append((points[-1][1], arm, colour))
    panel.end_labels(labels)
    told = "; ".join(f"{arm}: {points[0][1]:.3g} to {points[-1][1]:.3g}" for arm, points in curves.items())
    return picture(width, box.bottom + 40, panel.marks, label=f"{title}: {QUANTITIES[quantity]}. {told}.")


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
