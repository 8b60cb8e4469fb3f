"""Committed measurements of kernels and of inference, read as they are: figures and tables of results/bench."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turnout.report.figure import Cell, Data, Figure
from turnout.report.palette import layer_inks
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.run import flatten
from turnout.report.svg import linear_scale, log_scale, text

Row = dict[str, Any]
_NOISE = ("versions", "commit", "created", "threads", "host_cores", "status", "reason", "points", "ratio")


def read_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """Every row of the JSON-lines files of a folder, and words about the lines that are no rows."""
    rows: list[Row] = []
    notes: list[str] = []
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
        bad = 0
        try:
            content = path.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            notes.append(f"{path.name} cannot be read: {error.strerror}.")
            continue
        for raw in content.splitlines():
            try:
                row = json.loads(raw)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append({"file": path.name, **row})
            else:
                bad += bool(raw.strip())
        if bad:
            notes.append(f"{bad} line(s) of {path.name} are no rows and are left out.")
    return rows, notes


def of_verb(rows: Sequence[Row], verb: str) -> list[Row]:
    """The rows of one kind of measurement."""
    return [row for row in rows if row.get("kind") == verb or row.get("verb") == verb]


def dispatch_figure(table: Mapping[str, Any]) -> Figure | None:
    """Below which share of rows routing is faster, by length: what the dispatch of `attend` goes by."""
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    for row in table.get("rows", []):
        by_keys = row.get("by_n_keys") if isinstance(row, dict) else None
        if isinstance(by_keys, dict) and by_keys:
            found = sorted((float(n), float(p)) for n, p in by_keys.items())
            lines.append((f"{row.get('device')}, {row.get('dtype')}, {row.get('pass')}", found))
    if not lines:
        return None
    rows: list[list[Cell]] = [[name, n, p] for name, points in lines for n, p in points]
    inks = [f"light-dark({item.light},{item.dark})" for item in layer_inks(len(lines))]

    def draw(width: float) -> str:
        wide = width > 600
        # On a phone the names stand below, one a line.
        box = Box(left=50, top=30, width=width - (360 if wide else 70), height=260)
        x = log_scale([n for _, points in lines for n, _ in points], box.left, box.right, kind="log2")
        panel = Panel(box=box, x=x, y=linear_scale([0.0, 1.0], box.bottom, box.top, floor=0.0))
        panel.axes(title="Break-even: share of rows that attend (%)", y_unit="%", x_label="keys (log₂ scale)")
        for (_, points), colour in zip(lines, inks, strict=True):
            panel.line(points, colour, width=2)
            for n, p in points:
                panel.dot((n, p), colour, title=f"{n:,.0f} keys: {100 * p:.1f} %")
        below = box.bottom + 40
        if wide:
            panel.end_labels([(pts[-1][1], name, ink) for (name, pts), ink in zip(lines, inks, strict=True)])
        else:
            for (name, _), ink in zip(lines, inks, strict=True):
                below += 16
                panel.marks.append(text(name, box.left, below, class_="direct", style=f"fill:{ink}"))
        words = "; ".join(f"{name}: {100 * pts[0][1]:.0f} to {100 * pts[-1][1]:.0f} %" for name, pts in lines)
        return picture(width, below + 6, panel.marks, label=f"Break-even of routed attention by length. {words}.")

    wide, narrow = both_sizes(draw)
    return Figure(
        title="Where routing pays: the break-even of the kernels",
        wide=wide,
        narrow=narrow,
        caption="Below a line the routed kernel is faster than the fastest dense attention, with what a mixer spends "
        "on gathering and scattering rows where `turnout bench dispatch` measured it; above it dense attention is, and "
        "`attend` takes it. Measured by `turnout bench breakeven`; the table ships with the library.",
        data=Data(name="break_even", columns=["device, dtype, pass", "keys", "break_even"], rows=rows),
    )


def speedup_figure(rows: Sequence[Row], step: str, *, machine: str) -> Figure | None:
    """Fastest dense ÷ routed by share of rows, one line a length; crosses 1 at the break-even."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in of_verb(rows, "breakeven"):
        case = row.get("case")
        if (
            row.get("status") == "ok"
            and isinstance(case, dict)
            and case.get("step") == step
            and row.get("device") == machine
        ):
            pairs = [(float(p), float(r)) for p, r in row.get("points") or [] if r and r > 0]
            if pairs:
                curves[int(case["n"])] = sorted(pairs)
    if not curves:
        return None
    lengths = sorted(curves)
    inks = [f"light-dark({item.light},{item.dark})" for item in layer_inks(len(lengths))]

    def draw(width: float) -> str:
        box = Box(left=50, top=30, width=width - (170 if width > 600 else 150), height=240)
        every = [point for points in curves.values() for point in points]
        x = log_scale([p for p, _ in every], box.left, box.right)
        panel = Panel(box=box, x=x, y=log_scale([1.0, *(r for _, r in every)], box.bottom, box.top))
        panel.axes(title="Dense ÷ routed (×, log scale)", x_unit="%", x_label="share of rows that attend (log scale)")
        panel.reference(1.0, "equal", end=box.left + 40)
        for n, colour in zip(lengths, inks, strict=True):
            panel.line(curves[n], colour, width=2)
            for p, r in curves[n]:
                panel.dot((p, r), colour, size=3, title=f"{n:,} keys, {100 * p:g} % of rows: {r:.2f} times as fast")
        panel.end_labels([(curves[n][-1][1], f"{n:,} keys", ink) for n, ink in zip(lengths, inks, strict=True)])
        words = "; ".join(f"{n:,} keys: {curves[n][0][1]:.2f} to {curves[n][-1][1]:.2f}" for n in lengths)
        return picture(width, box.bottom + 40, panel.marks, label=f"Speed-up over dense, {step}, {machine}. {words}.")

    wide, narrow = both_sizes(draw)
    cells: list[list[Cell]] = [[machine, step, n, p, r] for n in lengths for p, r in curves[n]]
    return Figure(
        title=f"{machine}, {step}: how much faster",
        wide=wide,
        narrow=narrow,
        caption="Fastest dense attention ÷ routed attention in the same run, same device. Above 1 routing is faster.",
        data=Data(
            name=f"speedup_{step}_{machine}",
            columns=["device", "step", "keys", "rows_share", "dense_over_routed"],
            rows=cells,
        ),
    )


def plain_table(rows: Sequence[Row], name: str) -> Data:
    """Rows of any shape as a table: nested keys joined by dots, columns that never vary or say nothing left out."""
    flat = [
        {
            key: value
            for key, value in flatten(row).items()
            if key.split(".")[0] not in _NOISE and not isinstance(value, list)
        }
        for row in rows
    ]
    columns = [key for key in dict.fromkeys(key for row in flat for key in row) if key not in ("kind", "verb", "file")]
    columns = [key for key in columns if any(row.get(key) not in (None, "") for row in flat)]
    cells = [[_cell(row.get(key)) for key in columns] for row in flat]
    return Data(name=name, columns=columns, rows=cells)


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, ensure_ascii=False)
