"""Dilated segments on views of their grids: as exact as explicit masks, with gradients, at odd lengths and rates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.layers.dilation import dilated
from turnout.routers.pattern.reach import Dilation

DIM = 8
# Heads apart, heads side by side, more offsets than heads, and a segment longer than the sequence.
BRANCHES = [((4, 1), (8, 2)), ((4, 1), (16, 4)), ((4, 1), (8, 4), (32, 16)), ((16, 1),)]


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("length", [1, 21, 32])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 4), (3, 3), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_of_grids_are_as_exact_as_explicit_masks(
    branches: tuple[tuple[int, int], ...], length: int, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    dilation, rows = Dilation(branches=branches), torch.arange(length)[None, None]
    generator = torch.Generator().manual_seed(length)
    inputs = [
        torch.randn(2, length, n, DIM, generator=generator, dtype=torch.float64) for n in (heads, kv_heads, kv_heads)
    ]

    def fast(*qkv: Tensor) -> Tensor:
        return dilated(*qkv, dilation, rows, whole=True)

    def eager(*qkv: Tensor) -> Tensor:
        return dilated(*qkv, dilation, rows, whole=False)

    assert_as_exact_as_eager(fast, eager, inputs, reduction=length * heads * DIM, dtype=dtype)
