"""The scan's kernels compile without a device, within its registers."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

pytest.importorskip("triton")


def misfit_of(capability: int) -> list[str]:
    """In a process of its own: Triton compiles one kernel at a time, and none where its interpreter is on."""
    from compile_ahead import misfit
    from turnout.ops import scan_kernel

    sizes = {"H": 16, "P": 16, "N": 16, "Q": scan_kernel.CHUNK, "T": 512}
    found = []
    for kernel in (scan_kernel._forward, scan_kernel._backward):
        for precision in ("ieee", "tf32"):
            known = {**sizes, "PRECISION": precision, "first_ptr": None, "dfirst_ptr": None}
            arguments = {p.name: known.get(p.name, torch.zeros(1)) for p in kernel.params if p.name not in known}
            arguments |= {p.name: known[p.name] for p in kernel.params if p.name in known}
            options = {"num_warps": scan_kernel.WARPS, "num_stages": 3}
            found.append(misfit(kernel, arguments, options, capability, f"{kernel.__name__} {precision}"))
    return [words for words in found if words]


def test_the_scan_spills_no_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(misfit_of, 90).result() == []
