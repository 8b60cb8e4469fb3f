"""Measured rows that were never measured, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from turnout.bench.cases import Case


def row(kind: str, case: Case, arm: str, ms: float | None, **changes: Any) -> dict[str, Any]:
    """One good row on a made-up GPU."""
    return {
        "kind": kind, "case": case.to_dict(), "arm": arm, "status": "ok", "reason": "", "ms": ms, "ms_p20": ms,
        "ms_p80": ms, "n_calls": 9, "flops": 1.0, "tflops": None, "gb_s": None, "peak_bytes": None, "ratio": {},
        "device": "Testor 9", "device_kind": "cuda", "threads": 1, "commit": "c0ffee", "created": "2026-11-22T00:00:00",
        **changes,
    }  # fmt: skip


def peak_rows(dtype: str = "bfloat16", **changes: Any) -> list[dict[str, Any]]:
    """A device with 100 TFLOP/s, 1 TB/s and 5 µs a launch."""
    case = Case(n=1, p=1.0, dtype=dtype)
    return [
        row("peak", case, "matmul", 1.0, tflops=100.0, **changes),
        row("peak", case, "copy", 1.0, gb_s=1000.0, **changes),
        row("peak", case, "launch", 0.005, **changes),
    ]
