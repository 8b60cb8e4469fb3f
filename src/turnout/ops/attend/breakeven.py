"""From which fraction of rows dense attention is the faster choice: a measured table, and which of its rows decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FILE = Path(__file__).with_name("breakeven.json")
_TABLE = {
    (row["device"], row["dtype"], str(row["head_dim"]), row["pass"]): float(row["fraction"])
    for row in json.loads(FILE.read_text())["rows"]
}


class BreakEven(NamedTuple):
    """Capacity fraction R / S, and the row of the table that says so."""

    fraction: float
    row: str


def break_even(q: Tensor, *, backward: bool) -> BreakEven:
    """Look up the measured fraction for this device, dtype and head dim; the default row where nothing was measured.

    Args:
        q: decides device, dtype and head dim.
        backward: gradients will be taken too.
    """
    name = _device_name(q.device.index or 0) if q.device.type == "cuda" else q.device.type
    step = "forward+backward" if backward else "forward"
    key = (name, str(q.dtype).removeprefix("torch."), str(max(32, 1 << (q.shape[3] - 1).bit_length())), step)
    if key not in _TABLE:
        key = ("default", "default", "default", step)
    named = "default" if key[0] == "default" else f"{key[0]}, {key[1]}, head dim {key[2]}"
    return BreakEven(_TABLE[key], f"{named}, {step}")


def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


# What torch.compiler.assume_constant_result does, without its import of the compiler right here.
_device_name._dynamo_marked_constant = True  # type: ignore[attr-defined]
