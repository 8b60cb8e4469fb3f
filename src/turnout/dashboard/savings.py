"""What routing saves in every unit that a researcher is billed in: milliseconds, tokens a second, bytes and energy.

Milliseconds, peak memory and energy are measured and come from the rows of savings.json; bytes of keys and values are
counted from the model's shape and the measured usage, and are labelled so. What was not measured stays empty.
"""

from __future__ import annotations

import math

from turnout.report.figure import Cell, Data
from turnout.report.palette import base_name
from turnout.report.run import Line, Run, number
from turnout.report.savings import order

_ITEM = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}
_PEAK = ("peak_bytes", "peak_memory", "bytes")
_ENERGY = ("joules", "energy_j", "joules_per_call")


def savings_table(run: Run) -> Data:
    """One row an arm and kind of work."""
    rows: list[list[Cell]] = []
    for row in sorted(
        run.savings, key=lambda row: (order(str(row.get("what"))), number(row, "length"), str(row.get("arm")))
    ):
        rows.append(
            [str(row.get("what", "")), str(row.get("arm", "")).replace("_", " "), number(row, "length"),
             number(row, "batch"), number(row, "ms"), tokens_per_second(row), kv_bytes(run, row), _first(row, _PEAK),
             _first(row, _ENERGY), number(row, "flops")]
        )  # fmt: skip
    columns = ["work", "arm", "length", "batch", "ms", "tokens_per_s", "kv_bytes_read", "peak_bytes", "joules", "flops"]
    return Data(name="savings_units", columns=columns, rows=rows)


def tokens_per_second(row: Line) -> float:
    """Tokens of a call over its time; a decode row is one token of every sequence of the batch."""
    ms, batch = number(row, "ms"), number(row, "batch")
    tokens = batch * (1.0 if row.get("what") == "decode" else number(row, "length"))
    return 1e3 * tokens / ms if ms > 0 else math.nan


def kv_bytes(run: Run, row: Line) -> float:
    """Bytes of keys and values that decoding one token reads, over all layers and sequences: counted.

    dense: batch · layers · 2 · T · G · D · item size; routed: the same times the measured usage (a token that stays
    local reads no keys); local: none.
    """
    if row.get("what") != "decode":
        return math.nan
    model, optim = run.config.get("model"), run.config.get("optim")
    if not isinstance(model, dict):
        return math.nan
    heads, width, layers = number(model, "heads"), number(model, "width"), number(model, "layers")
    groups = number(model, "kv_heads")
    groups = heads if math.isnan(groups) else groups
    precision = optim.get("precision") if isinstance(optim, dict) else "fp32"
    size = _ITEM.get(str(precision), 4)
    one = number(row, "batch") * 2 * number(row, "length") * groups * (width / heads) * size
    arm = base_name(str(row.get("arm", "")))
    usage = number(row, "usage")
    attending = {"dense": layers, "static_hybrid": 1.0, "local": 0.0, "routed": layers * usage}.get(arm, math.nan)
    return one * attending


def _first(row: Line, keys: tuple[str, ...]) -> float:
    return next((value for key in keys if not math.isnan(value := number(row, key))), math.nan)
