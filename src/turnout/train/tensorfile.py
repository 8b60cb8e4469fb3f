"""Named tensors in one safetensors file, bit for bit, tied tensors included. Pickle is neither written nor read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from turnout.errors import CheckpointError
from turnout.train.atomic import write_file

PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})
"""File endings that mean pickle, which runs code when it is read."""

_ALIASES = "aliases"


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to one safetensors file, all or nothing.

    Args:
        path: file to create or replace, `*.safetensors`.
        tensors: by name; any device, shape and stride. Names of one tied tensor are stored once.
        metadata: short texts to keep in the file's header.
    Raises:
        CheckpointError: pickle file ending, or a tensor that safetensors cannot hold.
        DataError: the file could not be written; what was there before is kept.
    Cost: one copy of all tensors in host memory.
    """
    refuse_pickle(Path(path))
    write_file(Path(path), encode(tensors, metadata))


def load_tensors(
    path: str | Path, map_location: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read `(tensors, metadata)` as `save_tensors` wrote them, or any other safetensors file.

    Raises:
        CheckpointError: no such file, a pickle, or damaged.
    """
    path = Path(path)
    refuse_pickle(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; expected a safetensors file there") from error
    return decode(data, str(path), map_location)


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError when the name of the file says pickle."""
    if path.suffix.lower() in PICKLED:
        raise CheckpointError(
            f"{path} is a pickle by its ending {path.suffix}; pickles can run any code and are not read or written "
            "here; use safetensors: load the file where you trust it and save it with safetensors.torch.save_file"
        )


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Content of a safetensors file. Names of one tied tensor (same memory, shape and stride) go into the header."""
    first: dict[object, str] = {}
    storages: set[int] = set()
    plain: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(
                f"safetensors cannot hold {name}: layout {tensor.layout}, dtype {tensor.dtype}; make it dense"
            )
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and first.setdefault(view, name) != name:
            aliases[name] = first[view]
            continue
        host = tensor.detach().cpu().contiguous()
        # Different views of one storage (slices, transposes) are stored apart.
        storage = host.untyped_storage().data_ptr()
        plain[name] = host.clone() if storage in storages else host
        storages.add(storage)
    header = {**(metadata or {}), _ALIASES: json.dumps(aliases)}
    try:
        return save(plain, header)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        kinds = sorted({str(tensor.dtype) for tensor in plain.values()})
        raise CheckpointError(f"safetensors cannot hold these tensors (dtypes {', '.join(kinds)}): {error}") from error


def decode(
    data: bytes, where: str, map_location: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The inverse of `encode`; `where` names the file in messages.

    Raises:
        CheckpointError: `data` is not a whole safetensors file.
    """
    try:
        stored = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = dict(header.get("__metadata__", {}))
        aliases = json.loads(metadata.pop(_ALIASES, "{}"))
        tensors = {name: tensor.to(map_location) for name, tensor in stored.items()}
        tensors |= {name: tensors[target] for name, target in aliases.items()}
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is not a whole safetensors file ({len(data):,} bytes: {error}); it was cut short, damaged or is "
            "of another kind; restore it from a copy, or start the run again"
        ) from error
    return tensors, metadata
