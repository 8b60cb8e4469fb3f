"""z = <x_t, w> + b for every token in one pass.

Axes: N tokens, E width; BT tokens of a program, BE channels of a step.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# A step of a program is 4 KB in half precision: with a dozen programs a multiprocessor, enough is under way.
BT, BE = 4, 512


@triton.jit(do_not_specialize=["n_tokens"])
def gate_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, n_tokens, E: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    """out [N], float32 sums in one fixed order."""
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    channel = tl.arange(0, BE)
    inside = token < n_tokens
    row = x_ptr + token.to(tl.int64)[:, None] * E
    sums = tl.zeros([BT, BE], tl.float32)
    for first in range(0, E, BE):
        at = first + channel
        x = tl.load(row + at[None, :], mask=inside[:, None] & (at < E)[None, :], other=0.0)
        weight = tl.load(weight_ptr + at, mask=at < E, other=0.0)
        sums += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    out = tl.sum(sums, 1)
    if bias_ptr is not None:
        out += tl.load(bias_ptr).to(tl.float32)
    tl.store(out_ptr + token, out.to(out_ptr.dtype.element_ty), mask=inside)


def gate_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, T, 1] from contiguous x [B, T, E] and weight [1, E] of one dtype."""
    out = torch.empty(*x.shape[:-1], 1, dtype=x.dtype, device=x.device)
    n_tokens, width = out.numel(), x.shape[-1]
    if n_tokens:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            gate_kernel[(-(-n_tokens // BT),)](x, weight, bias, out, n_tokens, E=width, BT=BT, BE=BE, num_warps=4)
    return out
