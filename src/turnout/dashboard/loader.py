"""One run as the report's figures want it, read through the guarded folder and by byte offsets.

Gate maps are large and there are many: only the one that is looked at is read.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

from turnout.dashboard.folder import NotThere, RunsFolder, Stamp
from turnout.dashboard.listing import newer_words
from turnout.dashboard.metrics import MetricsIndex
from turnout.errors import DataError
from turnout.report.gates import GateSnapshot, parse_gates
from turnout.report.run import Line, Run, number, sorted_lines
from turnout.train.rundir import FORMAT

KEPT_RUNS = 48
KEPT_MAPS = 96
# A figure is 1,000 pixels wide; more dots would hide each other.
MOST_EVALS = 240


@dataclass(kw_only=True, slots=True)
class Loaded:
    """A run and what reading it found.

    Attributes:
        run: with curves, without gate maps.
        newer: words when a newer version wrote it (nothing else is read then), "" otherwise.
        searched: share of the metrics in which evaluations and events were looked for.
        sampled: are the training curves a sample of the lines?
        evals: evaluations found, of which at most `MOST_EVALS` are drawn.
        size: bytes of metrics.jsonl.
    """

    run: Run
    newer: str = ""
    searched: float = 1.0
    sampled: bool = False
    evals: int = 0
    size: int = 0


class Loader:
    """Reads runs; keeps the indices of the last ones.

    Args:
        folder: of the runs.
    """

    def __init__(self, folder: RunsFolder) -> None:
        self.folder = folder
        self._indices: OrderedDict[str, MetricsIndex] = OrderedDict()
        self._maps: OrderedDict[tuple[str, str, Stamp], GateSnapshot | None] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, name: str) -> Loaded:
        """Manifest, summary, savings and curves of a run.

        Raises:
            NotThere: no such run.
        """
        path = self.folder.path(name)
        run = Run(path=path)
        run.manifest = self._object(run, name, "manifest.json", "the configuration, device and commit are unknown")
        version = run.manifest.get("format")
        if isinstance(version, int) and version > FORMAT:
            return Loaded(run=run, newer=newer_words(version))
        if self.folder.stamp(name, "summary.json"):
            run.summary = self._object(run, name, "summary.json", "the numbers are those of its last evaluation")
        loaded = Loaded(run=run)
        self._metrics(loaded, name)
        if self.folder.stamp(name, "savings.json"):
            raw = self._object(run, name, "savings.json", "no measured savings")
            rows = raw.get("rows")
            run.savings = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
            run.savings_meta = {key: value for key, value in raw.items() if key != "rows"}
        return loaded

    def gates(self, name: str, step: int | None) -> tuple[GateSnapshot | None, str]:
        """The gate map of a step, or the last one.

        Returns:
            The map or None, and words about why there is none ("" when the model simply has no routed layers).
        """
        steps = self.folder.gate_steps(name)
        file = "gates/final.json" if step is None else f"gates/step-{step:06d}.json"
        if step is None and self.folder.stamp(name, file) is None:
            if not steps:
                return None, "no gate map is stored yet; the first evaluation of `turnout train` writes one"
            file = f"gates/step-{steps[-1]:06d}.json"
        stamp = self.folder.stamp(name, file)
        if stamp is None:
            return None, f"there is no gate map of step {step}" if step is not None else "the gate map is gone"
        key = (name, file, stamp)
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key], ""
        try:
            found = parse_gates(self.folder.read_json(name, file))
        except (DataError, ValueError) as error:
            return None, f"{file} is left out: {error}"
        with self._lock:
            self._maps[key] = found
            while len(self._maps) > KEPT_MAPS:
                self._maps.popitem(last=False)
        return found, ""

    def _object(self, run: Run, name: str, file: str, consequence: str) -> Line:
        try:
            raw = self.folder.read_json(name, file)
        except NotThere as error:
            run.notes.append(f"{error}: {consequence}.")
            return {}
        except DataError as error:
            run.notes.append(f"{error}: {consequence}.")
            return {}
        if isinstance(raw, dict):
            return raw
        run.notes.append(f"{file} holds no object: {consequence}.")
        return {}

    def _index(self, name: str) -> MetricsIndex:
        with self._lock:
            index = self._indices.setdefault(name, MetricsIndex())
            self._indices.move_to_end(name)
            while len(self._indices) > KEPT_RUNS:
                self._indices.popitem(last=False)
            return index

    def _metrics(self, loaded: Loaded, name: str) -> None:
        run = loaded.run
        try:
            with self.folder.open(name, "metrics.jsonl") as stream:
                seen = self._index(name).read(stream)
        except NotThere as error:
            run.notes.append(f"{error}: no training curves.")
            return
        except OSError as error:
            run.notes.append(f"metrics.jsonl cannot be read ({error.strerror}): no training curves.")
            return
        run.train, run.evals, run.events = sorted_lines(seen.lines)
        loaded.evals = len(run.evals)
        run.evals = thinned(run.evals, MOST_EVALS)
        loaded.searched, loaded.sampled, loaded.size = seen.searched, not seen.whole, seen.size
        if seen.damaged:
            run.notes.append(f"{seen.damaged:,} unreadable line(s) of metrics.jsonl are left out.")
        if seen.cut_off and run.summary:
            run.notes.append("The last line of metrics.jsonl is cut off; it is left out.")
        lost = [line for line in run.train if "loss" in line and math.isnan(line["loss"])]
        if lost:
            run.notes.append(
                f"The training loss is not a number in {len(lost)} of {len(run.train)} lines, first at step "
                f"{number(lost[0], 'step'):,.0f}: the run diverged there; the curves leave those points out."
            )


def thinned(lines: list[Line], most: int) -> list[Line]:
    """At most `most` lines, evenly, always with the last one."""
    if len(lines) <= most:
        return lines
    return [lines[(i + 1) * len(lines) // most - 1] for i in range(most)]
