"""Wall-clock of several alternatives in one run, interleaved so that drift hits all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one call: median, 20th and 80th percentile, and how many calls."""

    ms: float
    ms_p20: float
    ms_p80: float
    n: int


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
    flush: bool = False,
) -> dict[str, Timing]:
    """Time every call, round by round.

    Each call is warmed up twice. On a GPU a call is timed by events on the current stream; on a CPU by the host clock.

    Args:
        calls: name -> a call without arguments.
        device: where they run.
        seconds: time to spend on all calls together, at least `least` rounds and at most `most`.
        flush: overwrite the GPU's cache before each call, outside the timed region.
    """
    # More than the 50 MB of an H100's second-level cache, as triton.testing.do_bench does it.
    wipe = torch.empty(64 * 2**20, dtype=torch.int32, device=device) if flush and device.type == "cuda" else None
    for call in calls.values():
        call()
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0)
    began = time.perf_counter()
    while min(map(len, samples.values())) < least or time.perf_counter() - began < seconds:
        # In another order every round: a call runs slower after one that has heated the device.
        for name in shuffle.sample(list(calls), len(calls)):
            samples[name].append(_once(calls[name], device, wipe))
        if min(map(len, samples.values())) >= most:
            break
    return {name: _summary(values) for name, values in samples.items()}


def wait(device: torch.device) -> None:
    """Until the device has done what was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _once(call: Callable[[], object], device: torch.device, wipe: torch.Tensor | None = None) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        if wipe is not None:
            # Not waited for: while the GPU overwrites its cache the host launches the call, so that what lies between
            # the events is the call and not the way to it.
            wipe.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    n = len(ordered)
    return Timing(ms=ordered[n // 2], ms_p20=ordered[n // 5], ms_p80=ordered[min(n - 1, (4 * n) // 5)], n=n)


def graphed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same call as one CUDA graph, so that launch gaps are not what is timed; unchanged on a CPU.

    The call must have static shapes and must not synchronise.
    """
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
