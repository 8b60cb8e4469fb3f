"""`turnout reproduce --check`: do the committed results hold when a part of them is measured again?

Two checks. The committed rows must follow from the committed runs, to the letter. And of every claim one arm, the
quickest that was measured on this kind of device, is run again: its numbers must fall inside the interval in which the
committed seeds say that a further run falls.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.claims.registry import Arm, Claim
from turnout.claims.reproduce import Job, judged, run_all
from turnout.claims.store import claim_rows, read_json, summaries
from turnout.stats import predicted, wilson

Report = Callable[[str], None]
SHARES = ("accuracy", "usage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """One line of the outcome.

    Attributes:
        what: "rows", or the name of a measure.
        low, high: the interval of the committed seeds; NaN without one.
        outcome: "inside", "outside", "same", "changed", "failed" or "skipped".
        why: in words.
    """

    claim: str
    arm: str
    what: str
    committed: str
    low: float
    high: float
    again: float
    outcome: str
    why: str

    @property
    def good(self) -> bool:
        """Does this line not object?"""
        return self.outcome not in ("outside", "changed", "failed")


def check(
    claims: Sequence[Claim], root: Path, *, device: str, kind: str, jobs: int, minutes: float, report: Report
) -> list[Checked]:
    """Check the committed results of claims.

    Args:
        claims: which.
        root: folder of the committed results; nothing in it is changed.
        device: to run on; `kind`: its type, "cpu" or "cuda".
        jobs: runs at a time.
        minutes: runs that took longer are not repeated, and said to be skipped.
        report: gets progress.
    """
    found = [_rows_follow(entry, root) for entry in claims]
    chosen: list[tuple[Claim, Arm, str, int]] = []
    for entry in claims:
        pick, why = quickest(entry, root, kind, 60 * minutes, {(owner, arm.name) for _, arm, owner, _ in chosen})
        if pick is None:
            found.append(_line(entry.id, "", "run", "skipped", why))
        else:
            chosen.append((entry, *pick))
    with tempfile.TemporaryDirectory(prefix="turnout-check-") as folder:
        home = Path(folder)
        # Claims may share runs: each is done once.
        work: list[Job] = list(dict.fromkeys((o, arm.name, (seed,), device, home / o) for _, arm, o, seed in chosen))
        report(f"running {len(work)} of the committed runs again")
        failures = run_all(work, jobs, report)
        for entry, arm, owner, seed in chosen:
            record = read_json(home / owner / f"{arm.name}-{seed}.json")
            if record is None:
                why = next((line for line in failures if f" {arm.name} " in line), "it left no record")
                found.append(_line(entry.id, arm.name, "run", "failed", why))
                continue
            found += compared(entry.id, arm.name, summaries(owner, root)[arm.name], record)
    return found


def quickest(
    entry: Claim, root: Path, kind: str, most_s: float, taken: Collection[tuple[str, str]] = ()
) -> tuple[tuple[Arm, str, int] | None, str]:
    """The arm of a claim that takes the least time on this kind of device, its owner and a committed seed.

    Arms that another claim repeats already (`taken`) come last, and controls after what they control: a check should
    see as much as it can.

    Returns:
        None with the reason when there is nothing to run again.
    """
    if entry.bench is not None:
        return None, "a benchmark: measure it again with turnout reproduce"
    candidates = []
    for arm in entry.arms():
        owner = arm.owner or entry.id
        for record in summaries(owner, root).get(arm.name, []):
            if record.get("device") == kind and record.get("train_s") is not None:
                candidates.append((float(record["train_s"]), arm, owner, int(record["seed"])))
    if not candidates:
        return None, f"no committed run of it was made on this kind of device ({kind})"
    short = [item for item in candidates if item[0] <= most_s] or candidates
    seconds, arm, owner, seed = min(
        short, key=lambda item: ((item[2], item[1].name) in taken, item[1].control, item[0], item[1].name, item[3])
    )
    if seconds > most_s:
        return None, f"its quickest run took {seconds / 60:.0f} min; allow it with --minutes {math.ceil(seconds / 60)}"
    return (arm, owner, seed), ""


def compared(claim: str, arm: str, committed: Sequence[dict[str, Any]], again: dict[str, Any]) -> list[Checked]:
    """A run beside the committed seeds of its arm, measure by measure."""
    lines = []
    for name, value in measures(again).items():
        values = [seen[name] for record in committed if name in (seen := measures(record))]
        low, high = _interval(name, values, again)
        if math.isnan(low):
            words = f"{len(values)} committed seed(s) give no interval"
            lines.append(_line(claim, arm, name, "skipped", words, again=value))
            continue
        inside = low <= value <= high
        mean = math.fsum(values) / len(values)
        lines.append(
            Checked(
                claim=claim, arm=arm, what=name, committed=f"{mean:.4g} ({len(values)} seeds)", low=low, high=high,
                again=value, outcome="inside" if inside else "outside", why="95 % interval of a further run",
            )
        )  # fmt: skip
    return lines or [_line(claim, arm, "run", "skipped", "its record has no measure that is known here")]


def measures(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record that a repetition should meet: its own, or those of every learning rate it tried."""
    found = {name: record.get(name) for name in ("accuracy", "usage", "loss")}
    for run in record.get("runs") or []:
        if isinstance(run, dict) and "precision" in run:
            found[f"precision at lr {run.get('lr')}"] = run["precision"]
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _interval(name: str, values: Sequence[float], again: dict[str, Any]) -> tuple[float, float]:
    """Where a further run falls: by the spread of the seeds, and for a share at least by how many answers it rests on.

    Seeds that agree to the last digit have no spread; the share of a further evaluation still has sampling error.
    """
    low, high = predicted(values)
    trials = again.get("n_eval")
    if values and trials and (name in SHARES or name.startswith("precision")):
        mean = math.fsum(values) / len(values)
        sampled = wilson(mean, int(trials))
        low = sampled[0] if math.isnan(low) else min(low, sampled[0])
        high = sampled[1] if math.isnan(high) else max(high, sampled[1])
    return low, high


def _rows_follow(entry: Claim, root: Path) -> Checked:
    rows, again = claim_rows(entry.id, root), judged(entry, root)
    if not rows and not again:
        return _line(entry.id, "", "rows", "skipped", "nothing is committed")
    same = rows == again
    words = (
        "the committed rows follow from the committed runs" if same else "the runs give other rows: judge them again"
    )
    return _line(entry.id, "", "rows", "same" if same else "changed", words)


def _line(claim: str, arm: str, what: str, outcome: str, why: str, *, again: float = math.nan) -> Checked:
    return Checked(
        claim=claim,
        arm=arm,
        what=what,
        committed="",
        low=math.nan,
        high=math.nan,
        again=again,
        outcome=outcome,
        why=why,
    )
