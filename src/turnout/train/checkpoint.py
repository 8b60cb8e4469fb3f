"""Checkpoints: tensors and state as one unit that a kill at any moment leaves whole, the old one or the new one.

    checkpoint/step-000120.safetensors    weights, optimizer moments, generator states
               step-000120.json           counters, curriculum, task state: anything JSON holds
               latest.json                the pointer: step, the two file names, their sizes and SHA-256

Saving writes the two files under names that the pointer does not use yet, then replaces the pointer in one rename, then
deletes what the pointer no longer names. Loading checks both hashes. Pickle is neither written nor read.

What goes into `tensors` beside the weights comes from resume_state.py; single files from tensorfile.py. Both are
reachable from here.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from turnout.errors import CheckpointError, DataError
from turnout.train.atomic import write_error, write_file
from turnout.train.jsonfile import read_json, write_json
from turnout.train.resume_state import (
    flatten_generators,
    flatten_optimizer,
    restore_generators,
    restore_optimizer,
    section,
    with_prefix,
)
from turnout.train.tensorfile import PICKLED, decode, encode, load_tensors, refuse_pickle, save_tensors

__all__ = [
    "check_tensors",
    "exists",
    "flatten_generators",
    "flatten_optimizer",
    "load",
    "load_tensors",
    "restore_generators",
    "restore_optimizer",
    "save",
    "save_tensors",
    "section",
    "with_prefix",
]

FORMAT = 1
"""Version of the checkpoint layout; a reader refuses a larger one."""

_POINTER = "latest.json"


def save(path_dir: str | Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint in the folder `path_dir` by this one.

    A kill at any moment leaves a folder from which `load` gives either the old checkpoint or this one, whole.

    Args:
        path_dir: folder of the checkpoint, made when missing.
        step: optimizer steps done.
        tensors: by name, stored bit for bit; tied tensors stay tied.
        state: JSON-able; lists come back for tuples, floats exactly (also NaN and infinities).
    Raises:
        CheckpointError: something that cannot be stored exactly.
        DataError: disk full, no permission, …; the old checkpoint is kept.
    Cost: one copy of all tensors in host memory, and room for two checkpoints on the disk.
    """
    folder = Path(path_dir)
    _check_state(state, "state")
    content = {".safetensors": encode(tensors), ".json": json.dumps(dict(state), ensure_ascii=False).encode()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
    stem = _free_stem(folder, step)
    pointer: dict[str, Any] = {"format": FORMAT, "step": step}
    for ending, role in ((".safetensors", "tensors"), (".json", "state")):
        data = content[ending]
        write_file(folder / f"{stem}{ending}", data)
        pointer[role] = {"file": f"{stem}{ending}", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / _POINTER, pointer)
    _delete_others(folder, {f"{stem}{ending}" for ending in content})


def load(
    path_dir: str | Path, map_location: str | torch.device = "cpu"
) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    """Read `(step, tensors, state)` of the checkpoint in the folder `path_dir`.

    Args:
        path_dir: folder that `save` wrote.
        map_location: device of the returned tensors.
    Raises:
        CheckpointError: there is none, it is damaged, of a newer format, or a pickle.
    """
    folder = Path(path_dir)
    _refuse_foreign(folder)
    # A run that is still going may replace the checkpoint between reading the pointer and the files it names.
    for _ in range(3):
        pointer = _read_pointer(folder)
        try:
            data = {role: _read_checked(folder, pointer[role]) for role in ("tensors", "state")}
        except FileNotFoundError as error:
            missing = error
            continue
        tensors, _ = decode(data["tensors"], str(folder / pointer["tensors"]["file"]), map_location)
        return pointer["step"], tensors, json.loads(data["state"])
    raise CheckpointError(
        f"{missing.filename} is missing, but {folder / _POINTER} names it; the folder was copied in part or changed; "
        "copy the whole folder again, or start the run again under another name"
    )


def exists(path_dir: str | Path) -> bool:
    """Whether the folder holds a checkpoint (not whether it is undamaged: `load` tells)."""
    return (Path(path_dir) / _POINTER).is_file()


def check_tensors(expected: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError unless `got` has exactly the names, shapes and dtypes of `expected`."""
    problems = []
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing:
        problems.append(f"{len(missing)} missing ({_first(missing)})")
    if extra:
        problems.append(f"{len(extra)} unexpected ({_first(extra)})")
    other = [
        f"{name} is {_describe(got[name])}, expected {_describe(tensor)}"
        for name, tensor in expected.items()
        if name in got and (got[name].shape, got[name].dtype) != (tensor.shape, tensor.dtype)
    ]
    if other:
        problems.append(f"{len(other)} of another shape or dtype ({_first(other)})")
    if problems:
        raise CheckpointError(
            f"the checkpoint has {len(got)} tensors and the model {len(expected)}: {'; '.join(problems)}; it belongs "
            "to another config: use the config in the manifest.json of its run, or another checkpoint"
        )


def _free_stem(folder: Path, step: int) -> str:
    """File name for this step that the current pointer does not use: saving one step twice must not touch the first."""
    stem = f"step-{step:06d}"
    try:
        used = _read_pointer(folder)["tensors"]["file"] if exists(folder) else None
    except CheckpointError:
        # A damaged pointer names nothing that could be loaded.
        used = None
    return f"{stem}-again" if used == f"{stem}.safetensors" else stem


def _delete_others(folder: Path, keep: set[str]) -> None:
    """Delete what the pointer does not name: older checkpoints and what killed writes left."""
    try:
        for path in [*folder.glob("step-*"), *folder.glob(".*.tmp")]:
            if path.name not in keep:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error


def _refuse_foreign(folder: Path) -> None:
    refuse_pickle(folder)
    if exists(folder):
        return
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in PICKLED:
                refuse_pickle(path)
    found = "no such folder" if not folder.exists() else f"no {_POINTER} in it" if folder.is_dir() else "it is a file"
    raise CheckpointError(
        f"no checkpoint at {folder}: {found}; expected a folder with {_POINTER}, such as runs/NAME/checkpoint; "
        "if the run was stopped before its first checkpoint, start it again"
    )


def _read_pointer(folder: Path) -> dict[str, Any]:
    path = folder / _POINTER
    remedy = "restore the folder from a copy, or start the run again under another name"
    try:
        pointer = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}") from error
    version = pointer.get("format") if isinstance(pointer, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path} is not a checkpoint pointer: format {version!r}, expected {FORMAT}; {remedy}")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, written by a newer version of this library; this one reads up to "
            f"{FORMAT}; upgrade it to read this checkpoint"
        )
    entries = [pointer.get(role) for role in ("tensors", "state")]
    if not (isinstance(pointer.get("step"), int) and all(_is_entry(entry) for entry in entries)):
        raise CheckpointError(f"{path} was changed: it lacks the step, tensors or state of format {FORMAT}; {remedy}")
    return typing.cast(dict[str, Any], pointer)


def _is_entry(entry: Any) -> bool:
    """A file name without folders, and what the file must hash to."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and Path(entry["file"]).name == entry["file"]
        and isinstance(entry.get("sha256"), str)
    )


def _read_checked(folder: Path, entry: dict[str, str]) -> bytes:
    path = folder / entry["file"]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the permissions and the disk") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: {len(data)} bytes with SHA-256 {digest[:12]}…, expected {entry.get('bytes', '?')} "
            f"with {entry['sha256'][:12]}…; restore it from a copy, or start the run again under another name"
        )
    return data


def _check_state(value: Any, where: str) -> None:
    """Refuse what JSON would change without saying so."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}; JSON keys are strings; use {str(key)!r}")
            _check_state(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_state(item, f"{where}[{i}]")
    else:
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which JSON cannot hold; pass tensors as tensors, the rest as "
            "numbers, strings, lists and dictionaries"
        )


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
