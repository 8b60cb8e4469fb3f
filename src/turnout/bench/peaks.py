"""What this device can do at most: matrix products, copies, launches. The floors and the cost model stand on it."""

from __future__ import annotations

import time

import torch

from turnout.bench.arms import Arm, measure_arms
from turnout.bench.cases import Case
from turnout.bench.floors import Peaks
from turnout.bench.rows import Row, machine
from turnout.errors import DataError

# Large enough to be at the peak, small enough for a laptop.
SIZE = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 2**30, "cpu": 2**26}
LAUNCHES = 50


def measure_peaks(device: torch.device, *, dtype: str, seconds: float = 0.5) -> list[Row]:
    """Rows "matmul" (`tflops`), "copy" (`gb_s`, read + written) and "launch" (`ms` of one small call on the host)."""
    size, n_bytes = SIZE[device.type], COPIED[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    source = torch.randint(-(2**31), 2**31, (n_bytes // 4,), dtype=torch.int32, device=device)
    target, one = torch.empty_like(source), torch.zeros(8, device=device)
    arms = {
        "matmul": Arm(call=lambda: a @ b, flops=2.0 * size**3, n_bytes=0.0),
        # A kernel that copies: a graph's own copies run at two thirds of the bandwidth on an H200.
        "copy": Arm(call=lambda: torch.bitwise_not(source, out=target), flops=0.0, n_bytes=2.0 * n_bytes),
    }
    case = Case(n=1, p=1.0, dtype=dtype)
    rows = measure_arms("peak", case, arms, device=device, seconds=seconds)
    for _ in range(LAUNCHES):
        one.add_(1)
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        one.add_(1)
    if device.type == "cuda":
        torch.cuda.synchronize()
    ms = 1e3 * (time.perf_counter() - began) / LAUNCHES
    launch = {"arm": "launch", "ms": ms, "ms_p20": ms, "ms_p80": ms, "n_calls": LAUNCHES, "tflops": None, "gb_s": None}
    return [*rows, {**rows[0], **launch, "flops": 0.0}]


def find_peaks(rows: list[Row], device: str, dtype: str) -> Peaks:
    """The newest peaks of a machine (as `turnout.bench.rows.machine` names it) among measured rows.

    Raises:
        DataError: it has none.
    """
    found = {
        row["arm"]: row
        for row in rows
        if row["kind"] == "peak" and machine(row) == device and row["case"]["dtype"] == dtype and row["status"] == "ok"
    }
    if not {"matmul", "copy", "launch"} <= found.keys():
        raise DataError(f"no peaks of {device} in {dtype} under results/bench; measure them: turnout bench peaks")
    return Peaks(
        flops=1e12 * found["matmul"]["tflops"],
        bandwidth=1e9 * found["copy"]["gb_s"],
        launch=1e-3 * found["launch"]["ms"],
    )
