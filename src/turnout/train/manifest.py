"""What ran, where and from which code: the entries of manifest.json. Works without git and without a GPU."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import turnout
from turnout.config import to_dict

UNKNOWN = "unknown"


def build_manifest(
    config: Any, seed: int, device: object = "cpu", command: str | Sequence[str] | None = None
) -> dict[str, Any]:
    """Entries of manifest.json, all JSON-able; `RunDir.create` adds the name and the format.

    Args:
        config: the run config, a config dataclass or the dictionary that `to_dict` makes of it.
        seed: the seed that every generator of the run comes from.
        device: device of the model, a `torch.device` or its name.
        command: command line, a string or its parts; None takes `sys.argv`.
    Cost: two short git calls.
    """
    import torch

    words = sys.argv if command is None else command
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": to_dict(config) if dataclasses.is_dataclass(config) else dict(config),
        "seed": seed,
        "device": str(device),
        "device_name": device_name(device),
        "versions": {
            "turnout": turnout.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "commit": git_commit(),
        "command": words if isinstance(words, str) else shlex.join(words),
        "host_cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def device_name(device: object) -> str:
    """Name of the hardware: the GPU as CUDA calls it, the CPU model as /proc/cpuinfo gives it."""
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name(str(device))
    return cpu_model() if kind == "cpu" else str(device)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """CPU model of this host, or its architecture where the system does not tell more."""
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    pairs = [line.partition(":") for line in lines]
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    return fields.get("model name") or platform.processor() or platform.machine() or UNKNOWN


def git_commit(source: Path = Path(__file__)) -> str:
    """Commit of the checkout that the file `source` belongs to, with "+dirty" when tracked files differ from it.

    Returns:
        40 hex digits, with or without "+dirty"; "unknown" without git, outside a checkout, or when `source` is not
        tracked there (a package installed into some other project's folder must not report that project's commit).
        Where the variable TURNOUT_COMMIT is set it wins: the files may be a copy of a newer tree than their git folder.
    """
    if stated := os.environ.get("TURNOUT_COMMIT"):
        return stated
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return UNKNOWN
    commit, changes = _git(source, "rev-parse", "HEAD"), _git(source, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return UNKNOWN
    return f"{commit}+dirty" if changes else commit


def _git(source: Path, *arguments: str) -> str | None:
    """Output of one git command in the folder of `source`; None when there is no git or the command fails."""
    # A hook sets GIT_DIR and its kin to its own repository; the lock would disturb a git command beside the run.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment = {**clean, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=source.parent, env=environment, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
