"""Removal of directions behind an attention that has no epilogue for it: one pass over the outputs on a GPU, and
three products forward, five backward elsewhere.

B batch, T tokens, H heads, D head dim, K directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from turnout.ops.attend.reference import suppress_directions
from turnout.ops.attend.triton.support import why_not_here


def suppress(out: Tensor, directions: Tensor, amount: Tensor) -> Tensor:
    """o' = o − Σ_k r_k <o, d_k> d_k, as `suppress_directions` defines it.

        c = o d^T,  o' = o − (r c) d;     γ = g d^T,  ∂o = g − (r γ) d,  ∂r = −c γ,  ∂d = −(r c)^T g − (r γ)^T o

    Only o, which attention keeps anyway, and on the CPU c are kept for the backward pass. In products every addition is
    part of one, so that o is read twice and written once. Code compiled for a CPU keeps the definition, which the
    compiler fuses itself.

    Args:
        out: [B, T, H, D]; directions: [H, K, D]; amount: r, [B, T, H, K].
    """
    directions, amount = directions.to(out.dtype), amount.to(out.dtype)
    if not out.numel() or not directions.shape[1]:
        return suppress_directions(out, directions, amount)
    if out.is_cuda and out.dtype != torch.float64 and not why_not_here("cuda", out.device.index or 0):
        # Not at the top: `import turnout` does not import Triton.
        from turnout.ops.suppress_kernel import cut_directions

        return cut_directions(out, directions, amount)
    if torch.compiler.is_compiling():
        return suppress_directions(out, directions, amount)
    return _Suppress.apply(out, directions, amount)


class _Suppress(torch.autograd.Function):
    """Heads are the batch of every product, [H, B·T, ...], which is a view of what attention returns."""

    @staticmethod
    def forward(ctx: Any, o: Tensor, d: Tensor, r: Tensor) -> Tensor:
        with torch.autocast(o.device.type, enabled=False):
            c = _by_head(o) @ d.transpose(1, 2)
            ctx.save_for_backward(o, d, r, c)
            return _minus(o, _by_head(r) * c, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        o, d, r, c = ctx.saved_tensors
        with torch.autocast(o.device.type, enabled=False):
            along, share = _by_head(grad) @ d.transpose(1, 2), _by_head(r)
            removed = share * along
            d_directions = (share * c).transpose(1, 2) @ _by_head(grad)
            d_directions += removed.transpose(1, 2) @ _by_head(o)
            d_amount = (-c * along).transpose(0, 1).unflatten(0, o.shape[:2])
            return _minus(grad, removed, d), -d_directions, d_amount


def _by_head(x: Tensor) -> Tensor:
    """[B, T, H, ...] -> [H, B·T, ...]."""
    return x.flatten(0, 1).transpose(0, 1)


def _minus(x: Tensor, share: Tensor, d: Tensor) -> Tensor:
    """x − share d, the addition in the product: [B, T, H, D]."""
    out = x.clone(memory_format=torch.contiguous_format)
    _by_head(out).baddbmm_(share, d, alpha=-1)
    return out
