"""Strict JSON files: what is written can be read by any JSON reader, and damage is reported with its place.

A float that is not finite is written as null. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turnout.errors import DataError
from turnout.train.atomic import write_file


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of dictionaries, lists, numbers, strings, paths, arrays and tensors; NaN and infinities become null.

    Raises:
        DataError: the value holds something else.
    """
    try:
        return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise DataError(f"{error}; JSON holds numbers, strings, lists and dictionaries; convert it first") from error


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write one JSON file, all or nothing.

    Raises:
        DataError: not JSON-able, or the file could not be written; what was there before is kept.
    """
    write_file(path, (to_json(value, indent=indent) + "\n").encode("utf-8", "surrogatepass"))


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        DataError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the permissions and the disk") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); it is damaged; restore it or start again") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # NumPy scalars, arrays and tensors all have `tolist`.
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value) if isinstance(value, Path) else value
