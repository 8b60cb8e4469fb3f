"""Vectors no longer than a cap: what bounds a score, so that a decay says which keys are negligible.

B batch, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from turnout.ops.attend.triton.support import why_not_here


def shorten(x: Tensor, cap: float) -> Tensor:
    """y = min(1, cap / |x|) x for vectors x along the last axis, [B, T, H, D].

    On a GPU one pass, and one backward; elsewhere and in compiled code torch's operations, which a compiler fuses.
    """
    if torch.compiler.is_compiling() or not x.is_cuda or x.dtype == torch.float64:
        return shorten_plainly(x, cap)
    if x.stride(-1) != 1 or why_not_here("cuda", x.device.index or 0):
        return shorten_plainly(x, cap)
    shorter: Tensor = _Shorten.apply(x, cap)
    return shorter


def shorten_plainly(x: Tensor, cap: float) -> Tensor:
    """The definition."""
    number = torch.float64 if x.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=number)
    return x * (cap / norm.clamp(min=cap)).to(x.dtype)


class _Shorten(torch.autograd.Function):
    """The kernel's two passes; x alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        from turnout.ops.shorten_kernel import shorten_rows

        ctx.save_for_backward(x)
        ctx.cap = cap
        return shorten_rows(x, cap)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from turnout.ops.shorten_kernel import shorten_rows

        (x,) = ctx.saved_tensors
        return shorten_rows(x, ctx.cap, grad if grad.stride(-1) == 1 else grad.contiguous()), None
