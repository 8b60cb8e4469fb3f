"""Every call has a plan: no head dim, length or grouping that the operator takes falls between the tables."""

from __future__ import annotations

import pytest
import torch

from turnout.ops.attend.triton.configs import MAX_HEAD_DIM

pytest.importorskip("triton")

from compile_ahead import ABSENT, NUMBERS
from turnout.ops.attend.triton.job import Job


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_rows", [1, 40, 600])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (8, 2), (3, 1)])
def test_every_head_dim_has_a_plan(dtype: torch.dtype, n_rows: int, heads: int, kv_heads: int) -> None:
    for width in range(8, MAX_HEAD_DIM + 1, 8):
        q = torch.empty(1, n_rows, heads, width, dtype=dtype, device="meta")
        k = torch.empty(1, 4096, kv_heads, width, dtype=dtype, device="meta")
        job = Job(q=q, k=k, v=k, rows=None, **{**ABSENT, **NUMBERS}, tiles=())
        plan = job.plan()
        assert all(tile.rows >= heads // kv_heads for tile in (plan.forward, plan.dq, plan.dkdv)), width
