"""A figure of the page with its caption and its data: the CSV on disk, the same CSV in the page, and a short table."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turnout.report.theme import standalone
from turnout.train.atomic import write_file

Cell = str | float | int | bool | None

TABLE_ROWS = 40
EMBED_BYTES = 160_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """A named table: what a figure draws.

    Attributes:
        name: file name without `.csv`.
        columns: header.
        rows: cells; NaN and None are written as empty.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def csv(self) -> str:
        """RFC 4180 text."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(self.columns)
        writer.writerows([_written(cell) for cell in row] for row in self.rows)
        return out.getvalue()

    @property
    def filename(self) -> str:
        """NAME.csv; characters that a file name should not have become `_`."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", self.name) + ".csv"

    def uri(self) -> str:
        """The CSV as a `data:` link; "" when it is too large to embed (then only the file has it)."""
        raw = self.csv().encode("utf-8", "replace")
        if len(raw) > EMBED_BYTES:
            return ""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(raw).decode("ascii")

    def preview(self) -> list[list[str]]:
        """The first rows as text, for the expandable table."""
        return [[_written(cell) for cell in row] for row in self.rows[:TABLE_ROWS]]

    def write(self, folder: Path) -> Path:
        """Write `folder/NAME.csv` atomically."""
        target = folder / self.filename
        write_file(target, self.csv().encode("utf-8", "replace"))
        return target


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure of the page.

    Attributes:
        title: what it shows.
        wide: SVG for a wide page (or HTML).
        narrow: the same for a phone; "" when `wide` serves both.
        caption: how to read it, with n, seeds, device and commit.
        data: what is drawn.
    """

    title: str
    wide: str
    narrow: str
    caption: str
    data: Data

    def _repr_svg_(self) -> str:
        """The figure in a notebook."""
        return standalone(self.wide, theme="light")


def _written(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:.6g}"
    return str(cell)
