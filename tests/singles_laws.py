"""What the kernels of a window and single keys are held against: torch on the same keys."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.layers.chosen import near_and_chosen


def agree(
    n_rows: int, n_keys: int, heads: int, groups: int, dim: int, *, lists: int, window: int, marked: bool,
    dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> None:  # fmt: skip
    from turnout.ops.attend.triton.singles import window_and_singles

    source = torch.Generator().manual_seed(0)
    shapes = ((2, n_rows, heads, dim), (2, n_keys, groups, dim), (2, n_keys, groups, dim))
    inputs = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
    at = torch.arange(n_keys - n_rows, n_keys)[None, :, None, None]
    keys = torch.rand(2, n_rows, lists, n_keys, generator=source).argsort(-1)[..., :3]
    # Some in nobody's reach, some keys that every row chooses.
    keys = torch.cat([torch.where(keys == 0, -1, keys), torch.zeros_like(keys[..., :1])], -1)
    keys = keys.masked_fill(keys > at - window, -1)

    def fast(q: Tensor, k: Tensor, v: Tensor, *mark: Tensor) -> Tensor:
        given = [x.to(device) for x in (q, k, v)]
        return window_and_singles(*given, keys.to(device), window, mark[0].to(device) if mark else None).to("cpu")

    def eager(q: Tensor, k: Tensor, v: Tensor, *mark: Tensor) -> Tensor:
        return near_and_chosen(q, k, v, keys, window, None, mark=mark[0] if mark else None, impl="reference")

    extra = [torch.linspace(-1, 1, heads, dtype=torch.float64)] if marked else []
    assert_as_exact_as_eager(fast, eager, [*inputs, *extra], reduction=2 * n_keys * dim, dtype=dtype)
