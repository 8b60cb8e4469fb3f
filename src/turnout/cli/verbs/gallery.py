"""`turnout gallery`: draw the figures of docs/gallery from the committed results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from turnout.cli.find import find_run
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result
from turnout.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Draw every figure whose results are there, each with its data, and the page that shows them.

    Args:
        out: folder to draw into.
        results: folder of results; without it those that turnout claims prints.
        keep: run whose last gate map is taken into the results first.
        name: of that map in results/gates; needed with --keep.
        length: of the sequences of that map, where the run's length grew.
        runs: folder of all runs.
    """

    out: str = "docs/gallery"
    results: str | None = None
    keep: str | None = None
    name: str | None = None
    length: int | None = None
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Draw, and print the files."""
    from turnout.report.gallery import draw, keep

    options = call.options
    root = Path(options.results) if options.results else None
    if (options.keep is None) != (options.name is None):
        raise ConfigError("--keep RUN and --name NAME belong together: which run, and what its map is called")
    if options.keep and options.name:
        keep(find_run(options.keep, options.runs).path, options.name, root, length=options.length)
    written = draw(Path(options.out), root)
    return Result({"written": written}, [f"wrote  {path}" for path in written])
