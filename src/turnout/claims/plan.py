"""What a reproduction will cost, said before it starts: from the times that committed runs of the same arm took."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from turnout.claims.store import results_dir, summaries

Job = tuple[str, str, tuple[int, ...], str, Path]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One job with its expected time.

    Attributes:
        seconds: of the job; NaN when nothing comparable was ever measured.
        basis: where the time comes from, in words.
    """

    claim: str
    arm: str
    seeds: tuple[int, ...]
    seconds: float
    basis: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All jobs and what they cost together.

    Attributes:
        busy_s: seconds of computing, of the runs whose time is known.
        wall_s: until the last of them ends, with `jobs` at a time.
        unknown: jobs without a known time.
        kind: "cpu" or "cuda".
    """

    runs: list[PlannedRun]
    jobs: int
    busy_s: float
    wall_s: float
    unknown: int
    kind: str

    @property
    def words(self) -> str:
        """One line: runs, time, compute."""
        count = f"{len(self.runs)} run{'' if len(self.runs) == 1 else 's'} to do, {self.jobs} at a time"
        if not self.runs:
            return "nothing to run: every result is there already"
        unit = "GPU-hours" if self.kind == "cuda" else "core-hours"
        cost = f"about {duration(self.wall_s)}, {self.busy_s / 3600:.2f} {unit} of compute"
        if self.unknown == len(self.runs):
            return f"{count}; none was ever measured, so their time is not known"
        more = f", and {self.unknown} whose time is not known" if self.unknown else ""
        return f"{count}: {cost}{more}"


def plan_work(work: Sequence[Job], jobs: int, kind: str, root: Path | None = None) -> Plan:
    """Expect each job to take what the same arm took before, on the same kind of device where it ran there.

    Args:
        work: the jobs that are to be done.
        jobs: how many run at a time.
        kind: "cpu" or "cuda".
        root: results to learn from; None = those that ship with the library.
    """
    known: dict[str, dict[str, list[dict[str, Any]]]] = {}
    runs = []
    for claim, arm, seeds, _, _ in work:
        if claim not in known:
            known[claim] = summaries(claim, root or results_dir())
        seconds, basis = _expected(known[claim], arm, kind, len(seeds))
        runs.append(PlannedRun(claim=claim, arm=arm, seeds=seeds, seconds=seconds, basis=basis))
    times = [run.seconds for run in runs if not math.isnan(run.seconds)]
    return Plan(
        runs=runs,
        jobs=jobs,
        busy_s=math.fsum(times),
        wall_s=makespan(times, jobs),
        unknown=len(runs) - len(times),
        kind=kind,
    )


def dearest_first(work: Sequence[Job], kind: str, root: Path | None = None) -> list[Job]:
    """Jobs in the order in which several processes are done soonest: what takes longest begins first.

    Benchmarks come before all of them. What was never measured counts as the median of what was.
    """
    known = [run.seconds for run in plan_work(work, 1, kind, root).runs]
    usual = median([seconds for seconds in known if not math.isnan(seconds)] or [0.0])
    cost = {job: usual if math.isnan(seconds) else seconds for job, seconds in zip(work, known, strict=True)}
    return sorted(work, key=lambda job: (job[1] != "bench", -cost[job]))


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last job ends if each worker takes the next job as soon as it is free."""
    free = [0.0] * workers
    for time in seconds:
        heapq.heappush(free, heapq.heappop(free) + time)
    return max(free)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _expected(seen: dict[str, list[dict[str, Any]]], arm: str, kind: str, seeds: int = 1) -> tuple[float, str]:
    """Seconds of a job of so many `seeds`, and where the number comes from.

    A job is one seed, or several seeds that train as one stacked model; the records of those hold the time of all.
    """
    same = [record for record in seen.get(arm, []) if record.get("train_s")]
    others = [record for records in seen.values() for record in records if record.get("train_s")]
    for records, words in ((same, "this arm"), (others, "other arms of this claim")):
        here = [record for record in records if record.get("device") == kind]
        for chosen, where in ((here, ""), (records, ", on another kind of device")):
            if chosen:
                device = str(chosen[0].get("device_name", chosen[0].get("device")))
                return median(_seconds(record, seeds) for record in chosen), f"{words} on {device}{where}"
    return math.nan, "never measured"


def _seconds(record: dict[str, Any], seeds: int) -> float:
    """What a record's run would take with so many seeds: stacked models take turns on a CPU, none on a GPU."""
    seconds = float(record["train_s"])
    rates = len(record.get("config", {}).get("lrs", ())) or 1
    stacked = int(record.get("runs_together", 0)) / rates
    return seconds * seeds / stacked if stacked >= 1 and record.get("device") == "cpu" else seconds
