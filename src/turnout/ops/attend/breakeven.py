"""From which fraction of rows dense attention is the faster choice: a measured table, and which of its rows decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FILE = Path(__file__).with_name("breakeven.json")
# {(device, dtype, head dim, pass): ((keys, fraction), …)}, ascending; without lengths one fraction from 0 keys on.
_TABLE = {
    (row["device"], row["dtype"], str(row["head_dim"]), row["pass"]): tuple(
        sorted((int(n), float(fraction)) for n, fraction in row.get("by_n_keys", {0: row["fraction"]}).items())
    )
    for row in json.loads(FILE.read_text())["rows"]
}


class BreakEven(NamedTuple):
    """Capacity fraction R / S, and the row of the table that says so."""

    fraction: float
    row: str


def break_even(q: Tensor, n_keys: int, *, backward: bool) -> BreakEven:
    """Look up the measured fraction for this device, dtype and head dim; the default row where nothing was measured.

    Args:
        q: decides device, dtype and head dim.
        n_keys: S; the fraction is that of the longest measured length that is not longer, or of the shortest.
        backward: gradients will be taken too.
    """
    name = _device_name(q.device.index or 0) if q.device.type == "cuda" else q.device.type
    step = "forward+backward" if backward else "forward"
    key = (name, str(q.dtype).removeprefix("torch."), str(max(32, 1 << (q.shape[3] - 1).bit_length())), step)
    if key not in _TABLE:
        key = ("default", "default", "default", step)
    nearest, fraction = _TABLE[key][0]
    # A plain loop, which torch.compile follows.
    for length, measured in _TABLE[key]:
        if length <= n_keys:
            nearest, fraction = length, measured
    named = "default" if key[0] == "default" else f"{key[0]}, {key[1]}, head dim {key[2]}, {nearest} keys"
    return BreakEven(fraction, f"{named}, {step}")


def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


# What torch.compiler.assume_constant_result does, without its import of the compiler right here.
_device_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
