"""Trackers beside the run folder: Weights & Biases (offline), TensorBoard and trackio get a copy of every metrics line.

`metrics.jsonl` stays the truth: a tracker that fails is left out with one warning, and training goes on. Each tracker's
package is imported when it is asked for and not before.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from turnout.errors import ConfigError, UnsupportedError, nearest
from turnout.train.rundir import RunDir

# Name → package that it needs; the extra of turnout has the tracker's name.
TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
PROJECT = "turnout"


class Tracker(Protocol):
    """What every adapter offers; the class is called `Adapter` in its module."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def note(self, step: int, name: str, words: str) -> None: ...

    def finish(self, summary: Mapping[str, float]) -> None: ...


class View(Protocol):
    """What shows progress."""

    def update(self, record: dict[str, Any]) -> None: ...


def parse_trackers(words: str) -> tuple[str, ...]:
    """Names from `--track wandb,tensorboard`.

    Raises:
        ConfigError: no such tracker (names the nearest).
        UnsupportedError: its package is not installed.
    """
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"unknown tracker {name!r}{nearest(name, TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name]) is None:
            words = f"--track {name} needs {TRACKERS[name]}, which is not installed"
            raise UnsupportedError(f"{words}; install it with: pip install 'turnout[{name}]'")
    return names


class Tracked:
    """A view that also hands every line to trackers.

    Args:
        view: what shows progress, or None.
        names: of the trackers.
        run: the run folder.
        step: the first step that will be logged, after a resume that of the checkpoint.
    """

    def __init__(self, view: View | None, names: Sequence[str], run: RunDir, step: int = 0) -> None:
        self.view = view
        self.trackers: dict[str, Tracker] = {}
        for name in names:
            with self._guarded(name):
                adapter = importlib.import_module(f"turnout.train.tracking.{name}").Adapter
                self.trackers[name] = adapter(run, step)

    def update(self, record: dict[str, Any]) -> None:
        """Show a line, and hand it on."""
        if self.view is not None:
            self.view.update(record)
        step, kind = int(record.get("step") or 0), str(record.get("kind"))
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                if kind == "event":
                    tracker.note(step, str(record.get("event")), str(record.get("detail")))
                else:
                    tracker.log(step, scalars(record, prefix=f"{kind}/"))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the trackers; an interrupted run has no summary."""
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                tracker.finish(scalars(summary or {}))
        self.trackers.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Nothing that a tracker does stops training or gets into what the command prints."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.trackers.pop(name, None)
            warnings.warn(
                f"tracker {name} failed ({type(error).__name__}: {error}) and is left out from here on; training goes "
                "on, and metrics.jsonl has everything",
                stacklevel=3,
            )


@contextlib.contextmanager
def tracked(view: View | None, names: Sequence[str], run: RunDir, step: int = 0) -> Iterator[View | None]:
    """The view itself without trackers; with some, one that hands lines on and closes them at the end."""
    if not names:
        yield view
        return
    both = Tracked(view, names, run, step)
    try:
        yield both
    finally:
        both.finish(run.summary())


def scalars(record: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """The finite numbers of a record; a list becomes one number an entry, truth values 0 and 1."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if key in ("step", "kind"):
            continue
        items = [(f"{key}/{i}", item) for i, item in enumerate(value)] if isinstance(value, list) else [(key, value)]
        for name, item in items:
            if isinstance(item, int | float) and math.isfinite(item):
                found[prefix + name] = float(item)
    return found


def flat_config(run: RunDir) -> dict[str, Any]:
    """The run's config with dotted keys, and the manifest's commit and device."""
    flat: dict[str, Any] = {key: run.manifest.get(key) for key in ("commit", "device_name", "seed")}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value

    walk("", run.config)
    return flat
