"""One process and two on the same batches: losses step by step and tokens a second, through the command line itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.errors import ConfigError, TurnoutError
from turnout.tasks import Batch

if TYPE_CHECKING:
    from turnout.train.config import RunConfig

KINDS = ("one", "ddp", "fsdp")


def train_lines(
    recipe: str, kind: str, settings: Mapping[str, Any], folder: Path, *, processes: int = 2, timeout: float = 600.0
) -> list[dict[str, Any]]:
    """The training lines of `turnout train RECIPE` by one process, or by several as DDP or FSDP2.

    Args:
        kind: of `KINDS`.
        settings: by dotted key.
        folder: of all runs; the run is called after its kind.
        timeout: seconds after which a run counts as failed.
    Raises:
        TurnoutError: the run failed; the end of what it printed is in the message.
    """
    words = [sys.executable, "-m"]
    if kind != "one":
        words += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        settings = {**settings, "loop.parallel": kind}
    words += ["turnout", "train", recipe, "--runs", str(folder), "--name", kind]
    words += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=_one_thread(), check=False)
    except subprocess.TimeoutExpired as error:
        raise TurnoutError(f"{kind} took more than {timeout:.0f} s") from error
    path = folder / kind / "metrics.jsonl"
    if done.returncode or not path.exists():
        raise TurnoutError(f"{kind} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "train"]


def compared(kind: str, one: Sequence[Mapping[str, Any]], several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row: the largest and the last difference of the losses, and the median pace of both."""
    pairs = [(a["task_loss"], b["task_loss"]) for a, b in zip(one, several, strict=True)]
    pace = [sorted(line["tokens_per_s"] for line in lines)[len(lines) // 2] for lines in (one, several)]
    return {
        "kind": kind, "steps": len(pairs), "largest_difference": max(abs(a - b) for a, b in pairs),
        "first": pairs[0], "last": pairs[-1], "losses": pairs, "tokens_per_s": pace,
    }  # fmt: skip


def halved_lines(config: RunConfig) -> list[dict[str, Any]]:
    """The training lines of one process that takes each batch in two halves: what adding up in another order changes.

    Sequence by sequence it computes what two processes compute, so what it differs by is no matter of processes.
    """
    from turnout.train.loop import Trainer

    class Halved(Trainer):
        second: Batch | None = None

        def _draw(self, size: int) -> Batch:
            if self.second is not None:
                half, self.second = self.second, None
                return half
            first, self.second = halves(self.task.train_batch(2 * size))
            return first

    if config.optim.batch % 2 or config.optim.accumulate > 1:
        raise ConfigError(f"optim.batch={config.optim.batch}; expected an even batch, without accumulate")
    seen = _Lines()
    Halved(replace(config, optim=replace(config.optim, batch=config.optim.batch // 2, accumulate=2)), view=seen).train()
    return [line for line in seen.lines if line["kind"] == "train"]


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The first and the second half of the sequences of a training batch."""
    size = len(batch.tokens) // 2
    names = ("tokens", "at", "targets", "hint")
    first, second = ({n: getattr(batch, n)[rows] for n in names} for rows in (slice(size), slice(size, None)))
    return Batch(**first, slices={}), Batch(**second, slices={})


class _Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def update(self, record: dict[str, Any]) -> None:
        self.lines.append(record)


def _one_thread() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
    }
