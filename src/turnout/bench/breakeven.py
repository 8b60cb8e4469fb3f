"""The fraction of rows from which dense attention is the faster choice: measured, and written as the table that
`turnout.ops.attend` dispatches by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from turnout.bench.cases import Case
from turnout.bench.kernels import default_case, measure_kernel
from turnout.bench.rows import Row
from turnout.errors import DataError
from turnout.train.jsonfile import read_json, write_json

FRACTIONS = (0.25, 0.5, 0.7, 0.85, 1.0)
GPU_LENGTHS = ((512, 64), (2048, 16), (8192, 4), (32768, 1))
CPU_LENGTHS = ((512, 1), (2048, 1))
TABLE = Path(__file__).resolve().parents[1] / "ops" / "attend" / "breakeven.json"
ABOUT = (
    "Capacity fraction R / S from which dense attention is faster than the Triton kernels: by_n_keys where every query "
    "is at hand (with what a mixer spends on gathering and scattering rows, if that was measured: dispatch rows), "
    "scattered_by_n_keys where the given queries must be copied to their positions first (null: never). "
    "Rows are looked up by device name, dtype, padded head dim and pass; 'default' rows decide elsewhere. Measured by "
    "turnout bench breakeven. The longest length that is not longer than the keys decides; fraction is the smallest of "
    "by_n_keys."
)


def default_cases(device: torch.device) -> list[Case]:
    """One case a length and pass; their p is replaced."""
    lengths = CPU_LENGTHS if device.type == "cpu" else GPU_LENGTHS
    return [
        default_case(device, n=n, batch=batch, step=step)
        for step in ("forward", "forward+backward")
        for n, batch in lengths
    ]


def measure_break_even(
    case: Case, *, device: torch.device, fractions: Sequence[float] = FRACTIONS, seconds: float = 0.3
) -> tuple[Row, list[Row]]:
    """Where routed = fastest dense for one length and pass.

    Returns:
        The row {"kind": "breakeven", "break_even": p or null, ...} and the kernel rows behind it.
    """
    impl = "triton" if device.type == "cuda" else "gathered"
    impls = (impl, "scattered", "auto") if device.type == "cuda" else (impl, "auto")
    behind: list[Row] = []
    points: list[tuple[float, float]] = []
    copied: list[tuple[float, float]] = []
    for p in fractions:
        rows = measure_kernel(replace(case, p=p), device=device, impls=impls, seconds=seconds, router=False)
        behind += rows
        ms = {row["arm"]: row["ms"] for row in rows if row["ratio"]}
        routed = next(row for row in rows if row["arm"] == f"routed:{impl}")
        if routed["ratio"]:
            points.append((p, min(routed["ratio"].values())))
        if "routed:scattered" in ms and f"routed:{impl}" in ms:
            copied.append((p, ms["routed:scattered"] / ms[f"routed:{impl}"]))
    row = dict(behind[0])
    row |= {
        "kind": "breakeven", "arm": impl, "break_even": crossing(points), "points": points,
        "scattered_from": crossing(copied) if copied and min(ratio for _, ratio in copied) < 1 else None,
        "status": "ok" if points else "unsupported",
        "reason": "" if points else next(r["reason"] for r in behind if r["arm"] == f"routed:{impl}"),
    }  # fmt: skip
    row |= dict.fromkeys(("ms", "ms_p20", "ms_p80", "n_calls", "flops", "tflops", "gb_s", "peak_bytes"))
    row["ratio"] = {}
    return row, behind


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """The p at which the ratio dense / routed falls through 1, linear between points; 1 if it never does.

    Below the first point nothing is known: a routed call that loses there gives that point's p.
    """
    if not points:
        return None
    ordered = sorted(points)
    if ordered[0][1] <= 1:
        return ordered[0][0]
    for (p0, r0), (p1, r1) in itertools.pairwise(ordered):
        if r1 < 1:
            return p0 + (p1 - p0) * (r0 - 1) / (r0 - r1)
    return 1.0


def mixer_crossing(points: Sequence[tuple[float, float, float]]) -> float:
    """The p from which a mixer that attends for the rows taken is slower than one that attends densely.

    Args:
        points: (p, ms of the rows taken, ms densely); the former is linear in p between the points and beyond.
    """
    ordered = sorted(points)
    for (p0, r0, _), (p1, r1, dense) in itertools.pairwise(ordered):
        meets = p0 + (dense - r0) * (p1 - p0) / (r1 - r0) if r1 > r0 else 1.0
        if r1 >= dense or p1 == ordered[-1][0]:
            return min(max(meets, p0), 1.0)
    return 1.0


def _of_mixers(rows: Sequence[Row]) -> dict[tuple[str, str, int], list[tuple[float, float, float]]]:
    """Points of `mixer_crossing` by device, pass and length, from the newest dispatch rows."""
    newest = {
        (row["device"], row["case"]["step"], row["case"]["n"], row["case"]["p"]): row
        for row in rows
        if row["kind"] == "dispatch" and row["arm"] == "routed:auto" and row["ratio"]
    }
    points: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    for (*where, p), row in newest.items():
        device, step, n = where
        points.setdefault((device, step, n), []).append((p, row["ms"], row["ms"] * min(row["ratio"].values())))
    return points


def write_table(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Merge measured break-evens into the dispatch table, in place of its rows of the same device, dtype, dim and pass.

    Dispatch rows among them lower a fraction to where a whole mixer breaks even.

    Returns:
        All rows of the table now.
    Raises:
        DataError: nothing was measured, or the file is no such table.
    """
    groups: dict[tuple[Any, ...], dict[int, float]] = {}
    copied: dict[tuple[Any, ...], dict[str, float | None]] = {}
    commits: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row["kind"] != "breakeven" or row["break_even"] is None:
            continue
        case = row["case"]
        device = row["device"] if row["device_kind"] == "cuda" else row["device_kind"]
        key = (device, case["dtype"], max(32, 1 << (case["dim"] - 1).bit_length()), case["step"])
        groups.setdefault(key, {})[case["n"]] = row["break_even"]
        scattered = row.get("scattered_from")
        copied.setdefault(key, {})[str(case["n"])] = scattered if scattered is None else round(scattered, 3)
        commits[key] = row["commit"]
    mixers = _of_mixers(rows)
    for (device, _, _, step), found in groups.items():
        for n, p in found.items():
            # From the kernels' own break-even on the mixer was dense already.
            points = [point for point in mixers.get((device, step, n), []) if point[0] < p]
            found[n] = min(p, mixer_crossing(points)) if len(points) > 1 else p
    if not groups:
        raise DataError("no break-even was measured (see the rows for why), so the table is left as it was")
    old = read_json(path) if path.exists() else {"rows": []}
    if not isinstance(old, dict) or "rows" not in old:
        raise DataError(f"{path} is no break-even table; give another path with --table")
    kept = [row for row in old["rows"] if _key(row) not in groups]
    new = [
        {
            "device": key[0], "dtype": key[1], "head_dim": key[2], "pass": key[3],
            "fraction": round(min(found.values()), 3), "by_n_keys": {str(n): round(p, 3) for n, p in found.items()},
            "scattered_by_n_keys": copied[key], "commit": commits[key],
        }
        for key, found in groups.items()
    ]  # fmt: skip
    write_json(path, {"about": ABOUT, "rows": [*kept, *new]})
    return [*kept, *new]


def deciding_row(case: Case, device_name: str, path: Path | None = None) -> dict[str, Any] | None:
    """The row of the dispatch table that decides a case: its own device's, else the default; None without a table."""
    path = path or TABLE
    if not path.exists():
        return None
    rows = read_json(path)["rows"]
    width = max(32, 1 << (case.dim - 1).bit_length())
    for key in ((device_name, case.dtype, width, case.step), ("default", "default", "default", case.step)):
        for row in rows:
            if _key(row) == key:
                return dict(row)
    return None


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["device"], row["dtype"], row["head_dim"], row["pass"]
