"""What a call spends its time on: kernels on a GPU, operators on a CPU, as torch's profiler counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CALLS = 5
# Entries of a row; what is left is summed in one more.
MOST = 8
NAME = 80


def profiled(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """[{"name", "us", "calls"}] of one call, the longest first, with the second-level cache overwritten before each.

    Sums of the parts: gaps between launches are what is missing to the time of the whole call.
    """
    on_gpu = device.type == "cuda"
    wipe = torch.empty(64 * 2**20, dtype=torch.int32, device=device) if on_gpu else None
    call()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as found:
        for _ in range(CALLS):
            if wipe is not None:
                # Not zero: a fill of the call itself has the same name.
                wipe.bitwise_not_()
            call()
        if on_gpu:
            torch.cuda.synchronize()
    parts = [
        {
            "name": event.key[:NAME],
            "us": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / CALLS,
            "calls": event.count / CALLS,
        }
        for event in found.key_averages()
    ]
    parts = [part for part in parts if part["us"] > 0 and "bitwise_not" not in part["name"]]
    parts.sort(key=lambda part: -part["us"])
    rest = parts[MOST:]
    if rest:
        parts = parts[:MOST]
        parts.append({"name": "the rest", **{key: sum(part[key] for part in rest) for key in ("us", "calls")}})
    return [{**part, "us": round(part["us"], 2), "calls": round(part["calls"], 2)} for part in parts]
