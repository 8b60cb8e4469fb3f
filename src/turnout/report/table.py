"""A result table in plain text, for the end of training and of the demo; with rich when the output is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from turnout.report.numbers import MISSING, count, milliseconds, percent, significant


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        key: key of the row's value.
        title: header.
        form: how numbers are written: "text", "percent", "count", "ms" or "number"; numbers are aligned right.
    """

    key: str
    title: str
    form: str = "text"


RUN_COLUMNS = (
    Column(key="name", title="run"),
    Column(key="arm", title="arm"),
    Column(key="accuracy", title="accuracy", form="percent"),
    Column(key="loss", title="loss", form="number"),
    Column(key="usage", title="usage", form="percent"),
    Column(key="gates_per_seq", title="gates/seq", form="count"),
    Column(key="ms_per_step_dense", title="ms/step dense", form="ms"),
    Column(key="ms_per_step_skipping", title="ms/step skipping", form="ms"),
    Column(key="seed", title="seed"),
    Column(key="device", title="device"),
)

_FORMS: dict[str, Callable[[float], str]] = {
    "percent": percent,
    "count": count,
    "ms": milliseconds,
    "number": significant,
}


def result_table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column] = RUN_COLUMNS) -> str:
    """Aligned plain text: a header, a rule and one line per row. A column that is empty in every row is left out.

    Args:
        rows: summaries (summary.json) or any mappings; missing values are written as a dash.
        columns: what to show.
    """
    kept, cells = _cells(rows, columns)
    widths = [max(len(column.title), *(len(row[i]) for row in cells), 1) for i, column in enumerate(kept)]
    lines = [_join([column.title for column in kept], kept, widths), "  ".join("-" * width for width in widths)]
    lines += [_join(row, kept, widths) for row in cells]
    return "\n".join(lines)


def print_table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[Column] = RUN_COLUMNS,
    *,
    title: str = "",
    file: TextIO | None = None,
) -> None:
    """Print the table: by rich on a terminal, as plain text anywhere else."""
    stream = file or sys.stdout
    if not stream.isatty():
        stream.write((f"{title}\n" if title else "") + result_table(rows, columns) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    kept, cells = _cells(rows, columns)
    table = Table(title=Text(title) if title else None, title_justify="left")
    for column in kept:
        table.add_column(Text(column.title), justify="left" if column.form == "text" else "right")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=stream).print(table)


def _cells(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> tuple[list[Column], list[list[str]]]:
    kept = [column for column in columns if not rows or any(row.get(column.key) is not None for row in rows)]
    return kept, [[_written(row.get(column.key), column) for column in kept] for row in rows]


def _written(value: object, column: Column) -> str:
    if value is None:
        return MISSING
    if column.form in _FORMS and isinstance(value, int | float) and not isinstance(value, bool):
        return _FORMS[column.form](float(value)).replace("\N{NO-BREAK SPACE}", " ")
    # A control character in a name must not move the cursor or break the line.
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _join(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = [
        cell.ljust(width) if column.form == "text" else cell.rjust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    ]
    return "  ".join(parts).rstrip()
