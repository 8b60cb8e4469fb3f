"""What a verb hands back, and how it is printed: one JSON document, or text with tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from textwrap import wrap
from typing import Any

# Characters of a column in plain text; what a claim measured runs to a thousand.
WIDEST = 72


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under column names.

    Attributes:
        wrapped: without a terminal too, cells of more than `WIDEST` characters go on in the next line.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    wrapped: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a verb.

    Attributes:
        data: what `--json` prints; numbers that are not finite become null.
        parts: what is printed otherwise.
        code: exit code.
    """

    data: Any
    parts: Sequence[str | Table] = field(default_factory=tuple)
    code: int = 0


def emit(result: Result, *, as_json: bool) -> None:
    """Print a result on stdout: JSON, rich tables on a terminal, plain aligned lines elsewhere."""
    if as_json:
        from turnout.train.jsonfile import to_json

        print(_printable(to_json(result.data, indent=1)))
        return
    for part in result.parts:
        if isinstance(part, str):
            print(_printable(part))
        elif sys.stdout.isatty():
            _print_rich(part)
        else:
            print(_printable(plain_table(part)))


def plain_table(table: Table) -> str:
    """Aligned columns, two spaces apart; a line a row unless cells are `wrapped`."""
    rows = [[str(cell) for cell in row] for row in (table.columns, *table.rows)]
    if table.wrapped:
        cells = [[wrap(cell, WIDEST, break_long_words=False) for cell in row] for row in rows]
        rows = [list(line) for row in cells for line in zip_longest(*row, fillvalue="")]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([table.title, *lines] if table.title else lines)


def _print_rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(column), overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    Console().print(drawn)


def _printable(text: str) -> str:
    """`text` with a question mark for each character that stdout cannot write."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
