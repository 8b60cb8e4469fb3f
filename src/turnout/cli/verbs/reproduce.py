"""`turnout reproduce`: measure claims again, resumable, and print what came out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result
from turnout.cli.verbs.claims import claims_package, claims_table
from turnout.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Train what a claim needs and judge it. A run that is there already is not repeated.

    Args:
        id: claims or groups, such as routing-paradox (turnout list claims); none = all.
        quick: one seed of each arm, at its small size where it has one.
        device: auto, cpu or cuda.
        seeds: runs of each arm; without it each claim's own number.
        jobs: runs at a time.
        out: folder of results; without it those that turnout claims prints.
    """

    positional: ClassVar[tuple[str, ...]] = ("id",)
    id: tuple[str, ...] = ()
    quick: bool = False
    device: str = "auto"
    seeds: int | None = None
    jobs: int = 1
    out: str | None = None


def run(call: Call[Options]) -> Result:
    """Measure, and print the rows."""
    options = call.options
    for name, value in (("seeds", options.seeds), ("jobs", options.jobs)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value}; expected >= 1")
    if options.quick and options.seeds is not None:
        raise ConfigError("--quick means one seed of each arm; leave out --quick or --seeds")
    rows = claims_package().reproduce(
        list(options.id) or None,
        quick=options.quick,
        device=options.device,
        seeds=options.seeds,
        jobs=options.jobs,
        out=options.out,
        report=_progress,
    )
    return Result(rows, [claims_table(rows)])


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
