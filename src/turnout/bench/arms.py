"""One arm of a comparison: built, run once, its memory taken, then timed beside the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from turnout.bench.cases import Case
from turnout.bench.profile import profiled
from turnout.bench.rows import Row, provenance
from turnout.bench.timing import Timing, graphed, time_interleaved

# A ratio to dense attention below which an arm has lost.
LOSING = 0.95
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A named call.

    Attributes:
        call: without arguments.
        flops, n_bytes: useful operations of one call, and the bytes it must move.
        wrong: why its results are not to be trusted; "" = the self-check passed.
        calls: how many units one call holds (decode steps), by which its time is divided.
    """

    call: Callable[[], object]
    flops: float
    n_bytes: float
    wrong: str = ""
    calls: int = 1


def pinned(backend: str, call: Callable[[], object]) -> Callable[[], object]:
    """`call` with torch's attention held to one backend, forward and backward; "" leaves the choice to torch."""

    def run() -> object:
        # A context of this kind can be entered once only.
        with sdpa_kernel(BACKENDS[backend]) if backend else contextlib.nullcontext():
            return call()

    return run


def measure_arms(
    kind: str, case: Case, arms: Mapping[str, Arm], *, device: torch.device, seconds: float, extra: Row | None = None,
    profiles: bool = False,
) -> list[Row]:  # fmt: skip
    """Rows of all arms, timed interleaved; an arm that cannot run has a row that says why, and no time.

    With `profiles` the rows of routed arms say in `kernels` what their time is spent on; on a GPU the arm that a user
    gets says so wherever it loses to dense attention.
    """
    ready: dict[str, Callable[[], object]] = {}
    notes: dict[str, Row] = {}
    for name, arm in arms.items():
        try:
            peak = _peak_memory(arm.call, device)
            ready[name] = graphed(arm.call, device)
            notes[name] = {"status": "wrong" if arm.wrong else "ok", "reason": arm.wrong, "peak_bytes": peak}
        except (RuntimeError, NotImplementedError, ValueError) as error:
            notes[name] = {"status": "unsupported", "reason": str(error).split("\n")[0][:300], "peak_bytes": None}
    timings = time_interleaved(ready, device=device, seconds=seconds, most=100, flush=True) if ready else {}
    dense = min((timing.ms for name, timing in timings.items() if name.startswith("dense")), default=0.0)
    for name, timing in timings.items():
        lost = device.type == "cuda" and name == "routed:auto" and dense < LOSING * timing.ms
        if lost or (profiles and name.startswith("route")):
            notes[name]["kernels"] = profiled(arms[name].call, device)
    where = provenance(device)
    return [
        {"kind": kind, "case": case.to_dict(), "arm": name, **notes[name], **_numbers(arm, timings.get(name)),
         **(extra or {}), **where}
        for name, arm in arms.items()
    ]  # fmt: skip


def unsupported(kind: str, case: Case, arm: str, reason: str, device: torch.device) -> Row:
    """The row of an arm that could not even be built."""
    note = {"status": "unsupported", "reason": reason, "peak_bytes": None}
    nothing = Arm(call=lambda: None, flops=0.0, n_bytes=0.0)
    return {"kind": kind, "case": case.to_dict(), "arm": arm, **note, **_numbers(nothing, None), **provenance(device)}


def _numbers(arm: Arm, timing: Timing | None) -> Row:
    if timing is None:
        return dict.fromkeys(("ms", "ms_p20", "ms_p80", "n_calls", "flops", "tflops", "gb_s"))
    ms = timing.ms / arm.calls
    return {
        "ms": ms, "ms_p20": timing.ms_p20 / arm.calls, "ms_p80": timing.ms_p80 / arm.calls, "n_calls": timing.n,
        "flops": arm.flops, "tflops": arm.flops / ms / 1e9, "gb_s": arm.n_bytes / ms / 1e6,
    }  # fmt: skip


def _peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that one call takes beyond what is held already; None on a CPU, where torch does not count."""
    call()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def add_ratios(rows: list[Row]) -> list[Row]:
    """Give every routed row `ratio` = dense ms / its ms, for each dense arm of the run; none while a check fails."""
    dense = {row["arm"]: row["ms"] for row in rows if row["arm"].startswith("dense") and row["status"] == "ok"}
    for row in rows:
        trusted = row["status"] == "ok" and row["ms"] and not row["arm"].startswith("dense")
        row["ratio"] = {arm: ms / row["ms"] for arm, ms in dense.items()} if trusted else {}
    return rows


def dtype_of(case: Case) -> torch.dtype:
    """The torch dtype of a case."""
    dtype: Any = getattr(torch, case.dtype)
    return dtype


def generator_of(case: Case, device: torch.device) -> torch.Generator:
    """Random data of a case: the same in every run."""
    return torch.Generator(device).manual_seed(case.n)
