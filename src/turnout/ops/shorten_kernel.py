"""Vectors no longer than a cap, and the gradient of that, in one pass each.

    y = f x,  f = min(1, cap / |x|);     ∂x = f g,  where |x| ≥ cap: f (g − <g, x> x / |x|²)

Axes: B batch, T tokens, H heads, D head dim (BD padded to a power of two), N = B·T·H vectors, BM vectors of a program.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a program: 8 KB in half precision.
BLOCK = 4096


@triton.jit(do_not_specialize=["n_vectors", "n_tokens", "x_b", "g_b"])
def shorten_kernel(
    x_ptr, grad_ptr, y_ptr, cap, n_vectors, n_tokens, x_b, x_t, x_h, g_b, g_t, g_h,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """y, contiguous, of x [B, T, H, D]; BACKWARD: ∂x of x and the gradient of y."""
    vector = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.arange(0, BD)
    inside = (vector < n_vectors)[:, None] & (channel < D)[None, :]
    head, token = vector % HEADS, vector // HEADS % n_tokens
    batch = (vector // HEADS // n_tokens).to(tl.int64)
    place = (batch * x_b + token * x_t + head * x_h)[:, None] + channel[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    square = tl.sum(x * x, 1)
    norm = tl.sqrt(square)
    # Compared, not divided: the GPU's cap / cap need not be 1.
    long = norm >= cap
    factor = tl.where(long, cap / tl.maximum(norm, cap), 1.0)
    if BACKWARD:
        place = (batch * g_b + token * g_t + head * g_h)[:, None] + channel[None, :]
        g = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
        along = tl.where(long, tl.sum(g * x, 1) / tl.maximum(square, cap * cap), 0.0)
        out = factor[:, None] * (g - along[:, None] * x)
    else:
        out = factor[:, None] * x
    target = y_ptr + vector.to(tl.int64)[:, None] * D + channel[None, :]
    tl.store(target, out.to(y_ptr.dtype.element_ty), mask=inside)


def shorten_rows(x: Tensor, cap: float, grad: Tensor | None = None) -> Tensor:
    """y of x [B, T, H, D] whose last axis has no gaps; with `grad` ∂x. Contiguous, in x's dtype."""
    n_batch, n_tokens, n_heads, dim = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = triton.next_power_of_2(dim)
    rows = max(1, BLOCK // width)
    g = x if grad is None else grad
    if y.numel():
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            shorten_kernel[(-(-n_batch * n_tokens * n_heads // rows),)](
                x, g, y, cap, n_batch * n_tokens * n_heads, n_tokens, *x.stride()[:3], *g.stride()[:3],
                HEADS=n_heads, D=dim, BD=width, BM=rows, BACKWARD=grad is not None, num_warps=4,
            )  # fmt: skip
    return y
