"""`turnout claims`: the table of published numbers, what was measured here, and the verdict."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError, UnsupportedError

COLUMNS = ("id", "verdict", "statement", "quoted", "measured", "n", "device")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Print every claim with its committed measurement; --json adds source, interval, control, commit and command.

    Args:
        id: claims, their first letters (RA) or groups such as routing-paradox (turnout list claims); none = all.
        markdown: print the rows as a Markdown table.
        write: bring README's table and docs/claims.md of a checkout up to date with the committed results.
    """

    positional: ClassVar[tuple[str, ...]] = ("id",)
    id: tuple[str, ...] = ()
    markdown: bool = False
    write: bool = False


def run(call: Call[Options]) -> Result:
    """Print the table.

    Raises:
        ConfigError: unknown id, or ids together with --write (the pages hold all claims).
    """
    package = claims_package()
    wanted = call.options.id
    if wanted and call.options.write:
        raise ConfigError(f"--write brings whole pages up to date, got {' '.join(wanted)}; leave the ids out")
    rows = package.table()
    if wanted:
        from turnout.claims.registry import find_claims

        ids = {entry.id for entry in find_claims(list(wanted))}
        rows = [row for row in rows if row["id"] in ids]
    if call.options.write:
        from turnout.claims.page import write_down
        from turnout.claims.store import results_dir

        written = write_down(results_dir())
        return Result({"written": written}, [f"wrote  {path}" for path in written])
    return Result(rows, [package.markdown(rows) if call.options.markdown else claims_table(rows)])


def claims_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The columns that fit on a screen."""
    return Table(COLUMNS, [[str(row.get(key, "")) for key in COLUMNS] for row in rows], wrapped=True)


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
