"""The table of runs: a line a run, from its manifest, summary and last metrics, cached by stamps of the files."""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.dashboard.folder import Entry, NotThere, RunsFolder
from turnout.dashboard.metrics import last_of
from turnout.errors import DataError
from turnout.report.run import Run, number
from turnout.train.rundir import FORMAT

# A run that wrote nothing for this long is not called running any more.
QUIET_SECONDS = 120
STATES = ("running", "finished", "stopped", "damaged", "newer")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLine:
    """One row of the table.

    Attributes:
        state: one of `STATES`.
        problem: what is wrong with the run, in words; "" when nothing is.
        run: what the report's figures read: manifest, summary, last lines; no curves.
    """

    name: str
    state: str
    problem: str
    task: str
    arm: str
    router: str
    schedule: str
    seed: str
    step: float
    accuracy: float
    loss: float
    usage: float
    gates: float
    cost: float
    tokens_per_s: float
    device: str
    created: str
    modified: float
    run: Run


# Column name → what it sorts by. Numbers that are missing sort last in both directions.
SORTS = {
    "name": "name", "state": "state", "task": "task", "mechanism": "arm", "schedule": "schedule", "seed": "seed",
    "step": "step", "accuracy": "accuracy", "loss": "loss", "usage": "usage", "gates": "gates", "lambda": "cost",
    "tokens/s": "tokens_per_s", "created": "created", "modified": "modified",
}  # fmt: skip


class Listing:
    """Reads every run once and again only when its files change.

    Args:
        folder: of the runs.
    """

    def __init__(self, folder: RunsFolder) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Entry, RunLine]] = {}
        self._lock = threading.Lock()
        self._looked = 0.0
        self._entries: list[Entry] = []

    def entries(self) -> list[Entry]:
        """The runs and their stamps; twenty readers who ask at once share one look at the folder."""
        with self._lock:
            if time.monotonic() - self._looked > 0.5:
                self._entries = self.folder.entries()
                self._looked = time.monotonic()
            return self._entries

    def lines(self) -> list[RunLine]:
        """Every run.

        Cost: two or three small reads for each run that changed since the last call.
        """
        entries = self.entries()
        with self._lock:
            now = time.time()
            known = {}
            for entry in entries:
                old = self._known.get(entry.name)
                quiet = now - entry.modified_ns / 1e9 > QUIET_SECONDS
                if old and old[0] == entry and not (quiet and old[1].state == "running"):
                    known[entry.name] = old
                else:
                    known[entry.name] = entry, self._line(entry, quiet=quiet)
            self._known = known
            return [line for _, line in known.values()]

    def line(self, name: str) -> RunLine | None:
        """One run; None when there is none of that name."""
        return next((line for line in self.lines() if line.name == name), None)

    def _line(self, entry: Entry, *, quiet: bool) -> RunLine:
        run = Run(path=Path(entry.name))
        problems: list[str] = []
        run.manifest = self._object(entry, "manifest.json", entry.manifest, problems)
        run.summary = self._object(entry, "summary.json", entry.summary, problems) if entry.summary else {}
        last = self._last(run, entry, problems) if entry.metrics else {}
        newest = run.manifest.get("format")
        if isinstance(newest, int) and newest > FORMAT:
            problems = [newer_words(newest)]
            state = "newer"
        elif not entry.manifest or (problems and not run.manifest):
            problems = problems or ["manifest.json is missing: what ran here is unknown"]
            state = "damaged"
        else:
            state = "finished" if run.summary else "stopped" if quiet else "running"
        schedule = run.config.get("schedule")
        kind = schedule.get("kind") if isinstance(schedule, dict) else ""
        step = number(run.summary, "steps")
        return RunLine(
            name=entry.name, state=state, problem="; ".join(problems), task=run.task, arm=run.arm, router=run.router,
            schedule=str(kind or ""), seed=run.seed, step=number(last, "step") if math.isnan(step) else step,
            accuracy=_final(run, last, "accuracy"), loss=_final(run, last, "loss"), usage=_final(run, last, "usage"),
            gates=_final(run, last, "gates_per_seq"), cost=number(last, "lambda"),
            tokens_per_s=number(last, "tokens_per_s"), device=run.device,
            created=_date(run.manifest.get("created")), modified=entry.modified_ns / 1e9, run=run,
        )  # fmt: skip

    def _object(self, entry: Entry, file: str, stamp: Any, problems: list[str]) -> dict[str, Any]:
        if stamp is None:
            return {}
        try:
            raw = self.folder.read_json(entry.name, file)
        except DataError as error:
            problems.append(str(error))
            return {}
        if not isinstance(raw, dict):
            problems.append(f"{file} holds no object")
            return {}
        return raw

    def _last(self, run: Run, entry: Entry, problems: list[str]) -> dict[str, Any]:
        """The last training line; a run without a summary gets its last evaluation."""
        try:
            with self.folder.open(entry.name, "metrics.jsonl") as stream:
                found = last_of(stream, ("train",) if run.summary else ("train", "eval"))
        except NotThere as error:
            problems.append(str(error))
            return {}
        run.evals = [found["eval"]] if "eval" in found else []
        return found.get("train", {})


def newer_words(version: int) -> str:
    """What is said of a run that this version cannot read."""
    words = f"written by a newer turnout (folder format {version}, this one reads up to {FORMAT})"
    return f"{words}; upgrade turnout to see it"


def selected(lines: Sequence[RunLine], query: Mapping[str, str]) -> list[RunLine]:
    """Filtered and sorted as a query says.

    Args:
        query: `q` words that must all occur in name, task, mechanism, schedule, device or seed; `task`, `mechanism`,
            `state` exact; `sort` a key of `SORTS`, with a leading "-" for descending.
    """
    words = query.get("q", "").lower().split()
    kept = [line for line in lines if all(word in _haystack(line) for word in words)]
    for key, name in (("task", "task"), ("mechanism", "arm"), ("state", "state")):
        wanted = query.get(key, "")
        kept = [line for line in kept if not wanted or getattr(line, name) == wanted]
    sort = query.get("sort", "") or "-modified"
    attribute = SORTS.get(sort.lstrip("-"), "modified")
    ordered = sorted(kept, key=lambda line: line.name)
    have = [line for line in ordered if not _missing(getattr(line, attribute))]
    have.sort(key=lambda line: getattr(line, attribute), reverse=sort.startswith("-"))
    return have + [line for line in ordered if _missing(getattr(line, attribute))]


def _haystack(line: RunLine) -> str:
    parts = (line.name, line.task, line.arm, line.router, line.schedule, line.device, f"seed={line.seed}", line.state)
    return " ".join(parts).lower()


def _missing(value: Any) -> bool:
    return value == "" or (isinstance(value, float) and math.isnan(value))


def _final(run: Run, last: Mapping[str, Any], key: str) -> float:
    value = run.final(key)
    return number(last, key) if math.isnan(value) else value


def _date(raw: Any) -> str:
    try:
        return datetime.datetime.fromisoformat(str(raw)).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""
