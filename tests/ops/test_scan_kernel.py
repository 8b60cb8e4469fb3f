"""The scan's kernels compile without a device, within its registers."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("capability", [80, 90])
def test_the_scan_spills_no_register(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from compile_ahead import scan_misfits

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(scan_misfits, capability).result() == []
