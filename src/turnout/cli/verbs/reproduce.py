"""`turnout reproduce`: measure claims again, resumable; say before what it costs, write down after what came out."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.cli.verbs.claims import claims_package, claims_table
from turnout.errors import ConfigError

LISTED = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Train what a claim needs and judge it. A run that is there already is not repeated.

    Prints time and compute before it starts. Afterwards the table in README and the page of verdicts are up to date.

    Args:
        id: claims, their first letters (RA) or groups such as routing-paradox (turnout list claims); none = all.
        quick: one seed of each arm, at its small size where it has one.
        device: auto, cpu or cuda.
        seeds: runs of each arm; without it each claim's own number.
        jobs: runs at a time.
        out: folder of results; without it those that turnout claims prints.
        dry_run: print the plan and do nothing.
        check: repeat the quickest run of every claim and compare with the committed ones; exit 1 if one disagrees.
        minutes: with --check, runs that took longer are not repeated.
    """

    positional: ClassVar[tuple[str, ...]] = ("id",)
    id: tuple[str, ...] = ()
    quick: bool = False
    device: str = "auto"
    seeds: int | None = None
    jobs: int = 1
    out: str | None = None
    dry_run: bool = False
    check: bool = False
    minutes: float = 10.0


def run(call: Call[Options]) -> Result:
    """Measure, and print the rows.

    Raises:
        KeyboardInterrupt: Ctrl-C, with words about what is kept.
    """
    try:
        return _run(call.options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was measured is kept; the same command goes on from there") from None


def _run(options: Options) -> Result:
    _refuse(options)
    claims_package()
    from turnout.claims.plan import plan_work
    from turnout.claims.registry import find_claims, load_claims
    from turnout.claims.reproduce import jobs_of, reproduce
    from turnout.claims.store import results_dir
    from turnout.train.loop import pick_device

    claims = find_claims(list(options.id)) if options.id else list(load_claims().values())
    root = Path(options.out) if options.out else results_dir()
    kind = pick_device(options.device).type
    if options.check:
        return _check(options, claims, root, kind)
    work = jobs_of(claims, root, quick=options.quick, device=options.device, seeds=options.seeds)
    plan = plan_work(work, options.jobs, kind)
    shown = plan_table(plan)
    if options.dry_run:
        data = {**dataclasses.asdict(plan), "claims": [entry.id for entry in claims]}
        return Result(data, [shown, plan.words] if plan.runs else [plan.words])
    _progress(plan.words)
    rows = reproduce(
        [entry.id for entry in claims],
        quick=options.quick,
        device=options.device,
        seeds=options.seeds,
        jobs=options.jobs,
        out=options.out,
        report=_progress,
    )
    from turnout.claims.page import write_down, write_page

    written = write_down(root) if options.out is None else [write_page(root / "claims.md", root)]
    return Result(rows, [claims_table(rows), *(f"wrote  {path}" for path in written)])


def plan_table(plan: Any) -> Table:
    """What is to be run, and how long each took before."""
    from turnout.claims.plan import duration

    rows = [
        (run.claim, run.arm, ", ".join(map(str, run.seeds)),
         "not known" if math.isnan(run.seconds) else duration(run.seconds), run.basis)
        for run in plan.runs[:LISTED]
    ]  # fmt: skip
    more = len(plan.runs) - len(rows)
    return Table(("claim", "arm", "seeds", "time", "as measured"), rows, f"the first {LISTED} runs" if more > 0 else "")


def _check(options: Options, claims: list[Any], root: Path, kind: str) -> Result:
    from turnout.claims.check import check

    found = check(
        claims, root, device=options.device, kind=kind, jobs=options.jobs, minutes=options.minutes, report=_progress
    )
    rows = [
        (line.outcome, line.claim, line.arm, line.what, line.committed,
         "" if math.isnan(line.low) else f"[{line.low:.4g}, {line.high:.4g}]",
         "" if math.isnan(line.again) else f"{line.again:.4g}", line.why)
        for line in found
    ]  # fmt: skip
    table = Table(("outcome", "claim", "arm", "measure", "committed", "interval", "again", "why"), rows)
    wrong = [line for line in found if not line.good]
    met = sum(line.outcome in ("inside", "same") for line in found)
    skipped = sum(line.outcome == "skipped" for line in found)
    words = f"{met} agree, {len(wrong)} disagree, {skipped} skipped"
    data = [dataclasses.asdict(line) for line in found]
    # Nothing that could be checked is no agreement.
    return Result(data, [table, words], code=0 if met and not wrong else 1)


def _refuse(options: Options) -> None:
    for name, value in (("seeds", options.seeds), ("jobs", options.jobs), ("minutes", options.minutes)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value}; expected >= 1")
    if options.quick and options.seeds is not None:
        raise ConfigError("--quick means one seed of each arm; leave out --quick or --seeds")
    if options.check and (options.dry_run or options.seeds is not None):
        raise ConfigError("--check repeats one committed run of each claim; leave out --dry-run and --seeds")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
