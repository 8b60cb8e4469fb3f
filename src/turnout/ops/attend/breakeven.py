"""From which fraction of rows dense attention is the faster choice: a measured table, and which of its rows decided."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

FILE = Path(__file__).with_name("breakeven.json")
Entries = tuple[tuple[int, float, float], ...]


def _entries(row: dict[str, Any]) -> Entries:
    """(keys, dense fraction, scattered fraction), ascending; without lengths one entry from 0 keys on."""
    dense = row.get("by_n_keys", {"0": row["fraction"]})
    scattered = row.get("scattered_by_n_keys", dense)

    def number(fraction: float | None) -> float:
        return math.inf if fraction is None else float(fraction)

    return tuple(sorted((int(n), number(dense[n]), number(scattered[n])) for n in dense))


# {(device, dtype, head dim, pass): entries}.
_TABLE: dict[tuple[str, str, str, str], Entries] = {
    (row["device"], row["dtype"], str(row["head_dim"]), row["pass"]): _entries(row)
    for row in json.loads(FILE.read_text())["rows"]
}


class BreakEven(NamedTuple):
    """Capacity fractions R / S, and the row of the table that says so.

    Attributes:
        dense: from here on dense attention of every position is faster: for callers that have every query.
        scattered: from here on it is faster even with the copies that put the given queries into their positions.
        row: what decided.
    """

    dense: float
    scattered: float
    row: str


def break_even(device: torch.device, dtype: torch.dtype, n_keys: int, *, head_dim: int, backward: bool) -> BreakEven:
    """Look up the measured fractions for this device, dtype and head dim; the default row where nothing was measured.

    Args:
        device, dtype: of the queries.
        n_keys: S; the fractions are those of the longest measured length that is not longer, or of the shortest.
        head_dim: D.
        backward: gradients will be taken too.
    """
    name = _device_name(device.index or 0) if device.type == "cuda" else device.type
    step = "forward+backward" if backward else "forward"
    key = (name, str(dtype).removeprefix("torch."), str(max(32, 1 << (head_dim - 1).bit_length())), step)
    if key not in _TABLE:
        key = ("default", "default", "default", step)
    nearest, dense, scattered = _TABLE[key][0]
    # A plain loop, which torch.compile follows.
    for entry in _TABLE[key]:
        if entry[0] <= n_keys:
            nearest, dense, scattered = entry
    named = "default" if key[0] == "default" else f"{key[0]}, {key[1]}, head dim {key[2]}, {nearest} keys"
    return BreakEven(dense, scattered, f"{named}, {step}")


def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


# What torch.compiler.assume_constant_result does, without its import of the compiler right here.
_device_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
