"""`turnout claims`: the table of published numbers, what was measured here, and the verdict."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import UnsupportedError

COLUMNS = ("id", "verdict", "statement", "quoted", "measured", "n", "device")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Print every claim with its committed measurement; --json adds source, interval, control, commit and command.

    Args:
        markdown: print the rows as a Markdown table.
        write: bring README's table and docs/claims.md of a checkout up to date with the committed results.
    """

    markdown: bool = False
    write: bool = False


def run(call: Call[Options]) -> Result:
    """Print the table."""
    package = claims_package()
    rows = package.table()
    if call.options.write:
        from turnout.claims.page import write_down
        from turnout.claims.store import results_dir

        written = write_down(results_dir())
        return Result({"written": written}, [f"wrote  {path}" for path in written])
    return Result(rows, [package.markdown(rows) if call.options.markdown else claims_table(rows)])


def claims_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The columns that fit on a screen."""
    return Table(COLUMNS, [[str(row.get(key, "")) for key in COLUMNS] for row in rows])


def claims_package() -> types.ModuleType:
    """`turnout.claims`.

    Raises:
        UnsupportedError: this installation has none.
    """
    try:
        from turnout import claims
    except ImportError as error:
        raise UnsupportedError(f"the claims cannot be loaded ({error}); reinstall turnout") from error
    return claims
