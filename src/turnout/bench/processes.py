"""One process and two on the same batches: losses step by step and tokens a second, through the command line itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turnout.errors import TurnoutError

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


def _one_thread() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
    }
