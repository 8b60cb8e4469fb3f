"""Read a run folder as the report needs it, forgiving of everything that a killed or young run leaves behind.

A missing or damaged optional file becomes a note that the page prints, never an exception; only a folder that is no run
folder at all is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.errors import DataError, nearest
from turnout.report.gates import GateSnapshot, parse_gates

_NUMBERS = ("step", "n", "lambda", "loss", "task_loss", "accuracy", "usage", "gates_per_seq", "length", "ms")
_LARGEST, _SMALLEST = 1e30, 1e-30
_MARKS = ("manifest.json", "metrics.jsonl", "summary.json")

Line = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything the report knows about one run.

    Attributes:
        path: the folder.
        manifest: manifest.json, or {}.
        summary: summary.json, or {}.
        train: the metric lines of kind "train", by step; after a resume the later line of a step wins.
        evals: likewise "eval".
        events: likewise "event", in order of step.
        gates: final snapshot, or None.
        snapshots: all snapshots, by step.
        savings: the rows of savings.json.
        savings_meta: the other keys of savings.json (device, threads).
        notes: what was missing or damaged, in words.
    """

    path: Path
    manifest: Line = field(default_factory=dict)
    summary: Line = field(default_factory=dict)
    train: list[Line] = field(default_factory=list)
    evals: list[Line] = field(default_factory=list)
    events: list[Line] = field(default_factory=list)
    gates: GateSnapshot | None = None
    snapshots: list[GateSnapshot] = field(default_factory=list)
    savings: list[Line] = field(default_factory=list)
    savings_meta: Line = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run: manifest, else folder."""
        return str(self.manifest.get("name") or self.summary.get("name") or self.path.name)

    @property
    def config(self) -> Line:
        """The resolved run config."""
        config = self.manifest.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def task(self) -> str:
        """Kind of the task."""
        task = self.config.get("task")
        kind = task.get("kind") if isinstance(task, dict) else task
        return str(self.summary.get("task") or kind or "unknown task")

    @property
    def layout(self) -> str:
        """One letter a layer: R routed, A attention, L local; "" when unknown."""
        model = self.config.get("model")
        stored = self.summary.get("layout") or (model.get("layout") if isinstance(model, dict) else None)
        layers = number(model, "layers")
        letters = stored if isinstance(stored, str) and set(stored) <= set("RAL") else ""
        return letters * int(layers) if len(letters) == 1 and layers > 1 else letters

    @property
    def router(self) -> str:
        """Router spec; "none" when no layer is routed."""
        if self.layout and "R" not in self.layout:
            return "none"
        return str(self.summary.get("router") or lookup(self.config, "router") or "unknown router")

    @property
    def arm(self) -> str:
        """Arm of the comparison this run belongs to: as stored, else its router, else what its layers are."""
        stored = self.summary.get("arm") or self.manifest.get("arm")
        if stored or self.router != "none":
            return str(stored or self.router)
        kinds = set(self.layout)
        return "dense" if kinds == {"A"} else "local" if kinds == {"L"} else "static_hybrid"

    @property
    def seed(self) -> str:
        """Seed, as text."""
        seed = self.summary.get("seed", self.manifest.get("seed"))
        return "?" if seed is None else str(seed)

    @property
    def device(self) -> str:
        """Device and its model name."""
        kind = str(self.summary.get("device") or self.manifest.get("device") or "unknown device")
        model = str(self.manifest.get("device_name") or "")
        return f"{kind} ({model})" if model and model != kind else kind

    @property
    def commit(self) -> str:
        """Commit, shortened."""
        commit = str(self.summary.get("commit") or self.manifest.get("commit") or "unknown")
        name, plus, state = commit.partition("+")
        return name[:10] + plus + state

    @property
    def length(self) -> int | None:
        """Tokens per sequence at the end of training."""
        for value in (
            self.final("length"),
            self.gates.length if self.gates else math.nan,
            number(self.config.get("task"), "length"),
        ):
            if not math.isnan(value):
                return int(value)
        return None

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """Numbers of the routed layers: what the rows of gate maps and of `usage_layers` stand for."""
        if self.gates:
            return self.gates.index
        rows = max((len(numbers(line, "usage_layers")) for line in [*self.evals, *self.train]), default=0)
        by_layout = tuple(i for i, letter in enumerate(self.layout) if letter == "R")
        return by_layout if len(by_layout) == rows else tuple(range(rows))

    def final(self, key: str) -> float:
        """A closing number: from the summary, else from the last evaluation, else NaN.

        A model without routed layers reports no usage; its usage is the share of layers that attend, by its layout.
        """
        if key in ("usage", "gates_per_seq") and self.router == "none":
            attending = self.layout.count("A")
            return attending / len(self.layout) if key == "usage" else float(attending * (self.length or 0))
        value = number(self.summary, key)
        if not math.isnan(value):
            return value
        return number(self.last_eval, "n" if key == "n_eval" else key)

    @property
    def last_eval(self) -> Line:
        """The evaluation marked final, else the last one, else {}."""
        marked = [line for line in self.evals if line.get("final")]
        return (marked or self.evals or [{}])[-1]

    @property
    def is_text(self) -> bool:
        """Is the loss (not an accuracy) what this task is judged by?"""
        return self.task.startswith("text")


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: `path` is missing, not a folder, or holds none of manifest.json, metrics.jsonl and summary.json.
    """
    _check_is_run(path)
    run = Run(path=path)
    run.manifest = _read_object(run, "manifest.json", "the configuration, device and commit are unknown")
    finished = "the run has not finished (or was stopped); the numbers are those of its last evaluation"
    run.summary = _read_object(run, "summary.json", finished)
    _read_metrics(run)
    _read_gates(run)
    savings = path / "savings.json"
    if savings.exists():
        raw = _read_object(run, "savings.json", "no measured savings")
        rows = raw.get("rows")
        run.savings = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        run.savings_meta = {key: value for key, value in raw.items() if key != "rows"}
    return run


def number(source: Any, key: str) -> float:
    """`source[key]` as a float; NaN when it is missing, null, infinite or no number. Booleans are not numbers here."""
    return measured(source.get(key) if isinstance(source, dict) else None)


def numbers(source: Line, key: str) -> list[float]:
    """`source[key]` as a list of floats; [] when it is anything else."""
    value = source.get(key)
    if not isinstance(value, list):
        return []
    return [measured(item) for item in value]


def measured(value: Any) -> float:
    """A finite number of a size that a measurement can have, else NaN; what is far too small to matter is 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
        return math.nan
    return float(value) if abs(value) > _SMALLEST else 0.0


def lookup(config: Any, key: str) -> Any:
    """The first value stored under `key` anywhere in a nested config, or None."""
    if not isinstance(config, dict):
        return None
    if key in config:
        return config[key]
    found = (lookup(value, key) for value in config.values())
    return next((value for value in found if value is not None), None)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model": {"layers": 4}} → {"model.layers": 4}; lists stay whole."""
    if not isinstance(config, dict) or not config:
        return {prefix: config} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _check_is_run(path: Path) -> None:
    if not path.exists():
        beside = [item.name for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
        raise DataError(f"run folder {str(path)!r} does not exist{nearest(path.name, beside)}")
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is a file; expected a run folder (name the folder that holds {_MARKS[0]})")
    if any((path / mark).exists() for mark in _MARKS):
        return
    inside = sorted(item.name for item in path.iterdir() if item.is_dir() and any((item / m).exists() for m in _MARKS))
    if inside:
        shown = ", ".join(inside[:5]) + (", …" if len(inside) > 5 else "")
        raise DataError(f"{str(path)!r} is not a run but holds {len(inside)} of them; name them: {shown}")
    raise DataError(
        f"{str(path)!r} is not a run folder: it has none of {', '.join(_MARKS)}; "
        "give a folder that `turnout train` or `turnout demo` wrote"
    )


def _read_object(run: Run, name: str, consequence: str) -> Line:
    """A JSON object, or {} with a note."""
    try:
        raw = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.notes.append(f"{name} is missing: {consequence}.")
        return {}
    except (OSError, ValueError) as error:
        run.notes.append(f"{name} could not be read ({error}): {consequence}.")
        return {}
    if isinstance(raw, dict):
        return raw
    run.notes.append(f"{name} holds no object: {consequence}.")
    return {}


def _read_metrics(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    if not path.exists():
        run.notes.append("metrics.jsonl is missing: no training curves.")
        return
    text = path.read_bytes().decode("utf-8", "replace")
    rows = text.split("\n")
    damaged: list[int] = []
    lines: list[Line] = []
    for i, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            raw = json.loads(row)
        except ValueError:
            raw = None
        if isinstance(raw, dict):
            lines.append(raw)
        else:
            damaged.append(i)
    if damaged == [len(rows)]:
        run.notes.append(
            "The last line of metrics.jsonl is cut off (the run was stopped while writing); it is left out."
        )
    elif damaged:
        run.notes.append(
            f"{len(damaged)} unreadable line(s) of metrics.jsonl are left out, the first is line {damaged[0]}."
        )
    run.train, run.evals, run.events = sorted_lines(lines)
    lost = [line for line in run.train if "loss" in line and math.isnan(line["loss"])]
    if lost:
        first, last = int(number(lost[0], "step")), int(number(lost[-1], "step"))
        run.notes.append(
            f"The training loss is not a number in {len(lost)} of {len(run.train)} lines (steps {first} to {last}): "
            "the run diverged there; the curves leave those points out."
        )


def sorted_lines(lines: Iterable[Line]) -> tuple[list[Line], list[Line], list[Line]]:
    """Training lines, evaluations and events of parsed metrics, checked and by step."""
    checked = [_checked(line) for line in lines]
    train = _by_step(line for line in checked if line.get("kind") == "train")
    evals = _by_step(line for line in checked if line.get("kind") == "eval")
    events = [line for line in checked if line.get("kind") == "event" and not math.isnan(number(line, "step"))]
    return train, evals, sorted(events, key=lambda line: number(line, "step"))


def _checked(line: Line) -> Line:
    """The line with its numbers as numbers (or NaN), its phase as text and `skipping` as a truth value."""
    found = {key: number(line, key) for key in _NUMBERS if key in line}
    return {**line, **found, "phase": str(line.get("phase") or ""), "skipping": line.get("skipping") is True}


def _by_step(lines: Iterable[Line]) -> list[Line]:
    """Sorted by step, one line a step: a resumed run writes some steps again and the later line is the valid one."""
    latest = {number(line, "step"): line for line in lines}
    return [latest[step] for step in sorted(latest) if not math.isnan(step)]


def _read_gates(run: Run) -> None:
    folder = run.path / "gates"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            snapshot = parse_gates(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            run.notes.append(f"gates/{path.name} is left out: {error}.")
            continue
        if snapshot is None:
            continue
        if snapshot.dropped:
            run.notes.append(f"gates/{path.name}: {snapshot.dropped} of its sequences are unreadable and left out.")
        if path.stem == "final":
            run.gates = snapshot
        else:
            run.snapshots.append(snapshot)
    run.snapshots.sort(key=lambda snapshot: snapshot.step)
    if run.gates is None and run.snapshots:
        run.gates = run.snapshots[-1]
