"""A window and single keys by the kernels on a GPU: what torch computes, and the same bits in every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from singles_laws import agree

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "dim", "lists"), [(4, 4, 128, 1), (4, 2, 64, 2), (8, 8, 32, 8)])
def test_the_kernels_compute_what_torch_computes_on_a_gpu(
    dtype: torch.dtype, heads: int, groups: int, dim: int, lists: int
) -> None:
    agree(700, 700, heads, groups, dim, lists=lists, window=41, marked=True, dtype=dtype, device="cuda")


def test_repeats_agree_bit_for_bit_on_a_gpu() -> None:
    from turnout.ops.attend.triton.singles import window_and_singles

    q, k, v = (torch.randn(1, 2000, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    # Every row chooses the first keys.
    keys = torch.arange(2000, device="cuda")[:, None] - torch.tensor([100, 5000], device="cuda")
    keys = torch.cat([keys.clamp(min=-1), torch.zeros_like(keys[:, :1])], 1)
    keys = keys.masked_fill(keys > torch.arange(2000, device="cuda")[:, None] - 32, -1)[None, :, None]
    keys[:, :, :, 2].masked_fill_(keys[:, :, :, 0] == 0, -1)

    def once() -> list[Tensor]:
        out = window_and_singles(q, k, v, keys, 32, None)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)
