"""Checkpoints of several processes: each writes its part as safetensors, and any number of them reads it back.

    checkpoint/step-000120.parts/    safetensors files of torch.distributed.checkpoint, one or more a process
               step-000120.json      counters, schedule, task state
               latest.json           the pointer, replaced last

torch's usual format keeps its index in a pickle; this one has none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from turnout.errors import CheckpointError
from turnout.train.atomic import write_error, write_file
from turnout.train.jsonfile import read_json, write_json

FORMAT = 1
_POINTER = "latest.json"


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, main: bool) -> None:
    """Replace the checkpoint in `folder`; every process calls it, and a kill leaves the old one or the new one.

    Args:
        tensors: by name, whole or sharded (DTensor); whole ones are the same in all processes.
        state: JSON-able; that of the main process is written.
    Raises:
        DataError: the disk is full or cannot be written; the old checkpoint is kept.
    """
    stem = f"step-{step:06d}"
    parts = folder / f"{stem}.parts"
    if (folder / _POINTER).is_file() and read_json(folder / _POINTER).get("parts") == parts.name:
        parts = folder / f"{stem}-again.parts"
    try:
        if main:
            shutil.rmtree(parts, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        _wait()
        dcp.save(
            {name: _stored(tensor) for name, tensor in tensors.items()},
            storage_writer=dcp.HuggingFaceStorageWriter(path=str(parts), save_distributed=True),
            no_dist=not dist.is_initialized(),
        )
        if main:
            names = sorted(path.name for path in parts.iterdir())
            write_file(folder / f"{parts.stem}.json", json.dumps(dict(state)).encode())
            pointer = {"format": FORMAT, "step": step, "parts": parts.name, "files": names}
            write_json(folder / _POINTER, {**pointer, "state": f"{parts.stem}.json"})
            for path in folder.glob("step-*"):
                if path.name not in (parts.name, f"{parts.stem}.json"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
    _wait()


def exists(folder: Path) -> bool:
    """Whether the folder holds a checkpoint in parts."""
    path = folder / _POINTER
    return path.is_file() and "parts" in read_json(path)


def load(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[int, dict[str, Any]]:
    """Fill `tensors` in place from the checkpoint, whatever number of processes wrote it; step and state.

    Raises:
        CheckpointError: none there, a part is missing, or tensors of another model.
    """
    path = folder / _POINTER
    if not exists(folder):
        raise CheckpointError(f"no checkpoint in parts at {folder}; start the run again, or give the folder of a run")
    pointer = read_json(path)
    parts = folder / pointer["parts"]
    missing = [name for name in pointer["files"] if not (parts / name).is_file()]
    if missing or not (folder / pointer["state"]).is_file():
        raise CheckpointError(
            f"{parts} lacks {len(missing)} of {len(pointer['files'])} parts ({', '.join(missing[:3])}); copy the whole "
            "folder again, or start the run again under another name"
        )
    wanted = {name: _stored(tensor) for name, tensor in tensors.items()}
    reader = dcp.HuggingFaceStorageReader(path=str(parts))
    known: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    wrong = [name for name, t in wanted.items() if name not in known or list(known[name].size) != list(t.shape)]
    if wrong or known.keys() - wanted.keys():
        extra = sorted(known.keys() - wanted.keys())
        raise CheckpointError(
            f"the checkpoint in {parts} belongs to another model: {len(wrong)} tensors missing or of another shape "
            f"({', '.join(wrong[:3])}), {len(extra)} unexpected ({', '.join(extra[:3])}); use the config of its run"
        )
    dcp.load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    for name, tensor in tensors.items():
        if tensor.ndim == 0:
            with torch.no_grad():
                tensor.copy_(wanted[name][0])
    return int(pointer["step"]), read_json(folder / pointer["state"])


def _stored(tensor: Tensor) -> Tensor:
    """A scalar as a vector of one: the format knows no scalars."""
    return tensor.detach().reshape(1).clone() if tensor.ndim == 0 else tensor.detach()


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
