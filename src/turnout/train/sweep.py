"""Many settings of one recipe: each is an ordinary run in a folder of its own, all of them land in one table.

A sweep that was interrupted goes on where it stopped: finished runs are read, unfinished ones resumed.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.errors import ConfigError, DataError, UnsupportedError
from turnout.train.atomic import write_file
from turnout.train.jsonfile import to_json
from turnout.train.rundir import RunDir

SEPARATOR = "|"
BACKENDS = ("local", "slurm", "ray")
# Columns of the table, behind the settings that vary.
RESULTS = ("accuracy", "loss", "usage", "gates_per_seq", "steps", "train_s", "params")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep: its folder's name and what distinguishes it."""

    name: str
    settings: Mapping[str, str]


@dataclass(slots=True)
class Outcome:
    """How a point ended: its summary, or why there is none."""

    point: Point
    summary: dict[str, Any] | None
    error: str = ""


def points(overrides: Mapping[str, str], seeds: Sequence[int]) -> list[Point]:
    """All combinations of settings, `{"optim.lr": "1e-3|3e-3"}`, for every seed.

    Raises:
        ConfigError: an empty alternative, or one given twice.
    """
    axes: dict[str, list[str]] = {key: text.split(SEPARATOR) for key, text in overrides.items()}
    if seeds:
        if "seed" in axes:
            raise ConfigError("--seeds and --seed are both given; keep one")
        axes["seed"] = [str(seed) for seed in seeds]
    for key, values in axes.items():
        if not all(values) or len(set(values)) < len(values):
            raise ConfigError(f"--{key}={SEPARATOR.join(values)!r}; expected different values between {SEPARATOR!r}")
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    width = len(str(len(found)))
    return [Point(f"{i:0{width}d}", settings) for i, settings in enumerate(found, 1)]


def varying(found: Sequence[Point]) -> list[str]:
    """Settings that are not the same in all points."""
    keys = list(found[0].settings) if found else []
    return [key for key in keys if len({point.settings[key] for point in found}) > 1]


def words_of(recipe: str, point: Point, root: Path) -> list[str]:
    """The command of one run; an unfinished one is resumed."""
    words = [sys.executable, "-m", "turnout", "train", recipe, "--runs", str(root), "--name", point.name, "--json"]
    words += ["--resume"] if (root / point.name / "manifest.json").is_file() else []
    return words + [word for key, value in point.settings.items() for word in (f"--{key}", value)]


def run_sweep(
    recipe: str, found: Sequence[Point], root: Path, *, backend: str = "local", jobs: int = 1,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:  # fmt: skip
    """Run every point that is not finished, `jobs` at a time, and write `sweep.json` and `sweep.csv` as they end.

    Args:
        backend: "local" processes, "slurm" (package submitit) or "ray" (package ray); the others need `root` on a disk
            that all hosts share.
        tell: called as each point ends.
    Raises:
        UnsupportedError: the backend's package is not installed.
        DataError: the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {root}: {error.strerror}; choose another --runs") from error
    done = {point.name: _read(point, root) for point in found}
    wanted = [point for point in found if done[point.name] is None]
    outcomes = {p.name: Outcome(p, summary) for p in found if (summary := done[p.name]) is not None}
    for point, complaint in _BACKENDS[backend](recipe, wanted, root, jobs):
        outcomes[point.name] = Outcome(point, _read(point, root), complaint)
        write_tables(root, recipe, [outcomes[p.name] for p in found if p.name in outcomes])
        tell(outcomes[point.name])
    ordered = [outcomes[point.name] for point in found]
    write_tables(root, recipe, ordered)
    return ordered


def write_tables(root: Path, recipe: str, outcomes: Sequence[Outcome]) -> None:
    """`sweep.json` (everything) and `sweep.csv` (one line a run)."""
    rows = [
        {"name": o.point.name, "settings": o.point.settings, "error": o.error, "summary": o.summary} for o in outcomes
    ]
    write_file(root / "sweep.json", to_json({"recipe": recipe, "runs": rows}, indent=1).encode())
    keys = varying([o.point for o in outcomes]) or (list(outcomes[0].point.settings) if outcomes else [])
    lines = [",".join(_quoted(word) for word in ("name", *keys, *RESULTS, "error"))]
    for outcome in outcomes:
        values = [outcome.point.settings[key] for key in keys]
        results = [(outcome.summary or {}).get(name) for name in RESULTS]
        lines.append(",".join(map(_quoted, [outcome.point.name, *values, *results, outcome.error])))
    write_file(root / "sweep.csv", ("\n".join(lines) + "\n").encode())


def _quoted(value: Any) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _read(point: Point, root: Path) -> dict[str, Any] | None:
    folder = root / point.name
    return RunDir.open(folder).summary() if (folder / "manifest.json").is_file() else None


def _local(recipe: str, wanted: Sequence[Point], root: Path, jobs: int) -> Iterator[tuple[Point, str]]:
    """Processes of this machine."""
    waiting, running = list(wanted), dict[str, tuple[Point, subprocess.Popen[bytes], Path]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point = waiting.pop(0)
                log = root / f"{point.name}.log"
                with log.open("wb") as file:
                    words = words_of(recipe, point, root)
                    running[point.name] = (point, subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=file), log)
            ended = [name for name, (_, process, _) in running.items() if process.poll() is not None]
            for name in ended:
                point, process, log = running.pop(name)
                yield point, "" if process.returncode == 0 else _last_line(log)
            if not ended:
                time.sleep(0.05)
    finally:
        for _, process, _ in running.values():
            # Each writes its checkpoint and can be resumed.
            process.send_signal(2)
        for _, process, _ in running.values():
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it ended without a word"


def run_one(words: list[str]) -> str:
    """One run on whatever host this is: "" or the last line of what it complained."""
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else lines[-1][:300] if lines else "it ended without a word"


def _slurm(recipe: str, wanted: Sequence[Point], root: Path, jobs: int) -> Iterator[tuple[Point, str]]:
    """Jobs of a Slurm cluster; partitions, GPUs and times come from the environment (SBATCH_...)."""
    try:
        import submitit
    except ImportError as error:
        raise _missing("submitit", "slurm") from error
    executor = submitit.AutoExecutor(folder=str(root / "slurm"))
    executor.update_parameters(slurm_array_parallelism=jobs)
    tasks = executor.map_array(run_one, [words_of(recipe, point, root) for point in wanted])
    for point, task in zip(wanted, tasks, strict=True):
        yield point, str(task.result())


def _ray(recipe: str, wanted: Sequence[Point], root: Path, jobs: int) -> Iterator[tuple[Point, str]]:
    """Tasks of a Ray cluster, as many at a time as it has room for."""
    try:
        import ray
    except ImportError as error:
        raise _missing("ray", "ray") from error
    ray.init(ignore_reinit_error=True)
    remote = ray.remote(run_one)
    tasks = {remote.remote(words_of(recipe, point, root)): point for point in wanted}
    while tasks:
        (ended, *_), _ = ray.wait(list(tasks), num_returns=1)
        yield tasks.pop(ended), str(ray.get(ended))


def _missing(package: str, extra: str) -> UnsupportedError:
    return UnsupportedError(
        f"--on {extra} needs the package {package}, which is not installed; pip install 'turnout[{extra}]', or use "
        "--on local"
    )


_BACKENDS = {"local": _local, "slurm": _slurm, "ray": _ray}
