"""Removal of directions in one pass over the outputs, and its gradients in one pass over outputs and gradients.

    c = <o, d_k>,  o' = o − Σ_k r_k c_k d_k;     γ = <g, d_k>,  ∂o = g − Σ_k r_k γ_k d_k,  ∂r_k = −c_k γ_k,
    ∂d_k = −Σ_rows r_k (γ_k o + c_k g)

Axes: B batch, R rows (N of all sequences), H heads, D head dim (BD padded to a power of two), K directions (BK padded),
BM rows of a step, C chunks of rows, F = H / PACK packed heads, P = R · PACK.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from turnout.ops.attend.triton.job import run

BM = 16
# Rows of a program: its sum for the directions' gradient is one of C, so that few are added up in the end.
CHUNK = 128


@triton.jit(do_not_specialize=["n_rows", "n_directions"])
def cut_kernel(
    o_ptr, d_ptr, r_ptr, out_ptr, along_ptr, n_rows, n_directions,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """o' [N, H, D] of o [N, H, D]; with ALONG also c [N, H, K] float32."""
    head = tl.program_id(0) % HEADS
    row = tl.program_id(0) // HEADS * BM + tl.arange(0, BM)
    channel = tl.arange(0, BD)
    inside = row < n_rows
    index = row.to(tl.int64) * HEADS + head
    place = index[:, None] * D + channel[None, :]
    mask = inside[:, None] & (channel < D)[None, :]
    o = tl.load(o_ptr + place, mask=mask, other=0.0).to(tl.float32)
    out = o
    for one in range(0, n_directions):
        d = tl.load(d_ptr + (head * n_directions + one) * D + channel, mask=channel < D, other=0.0).to(tl.float32)
        r = tl.load(r_ptr + index * n_directions + one, mask=inside, other=0.0).to(tl.float32)
        c = tl.sum(o * d[None, :], 1)
        if ALONG:
            tl.store(along_ptr + index * n_directions + one, c, mask=inside)
        out -= (r * c)[:, None] * d[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "n_directions", "n_chunks"])
def uncut_kernel(
    out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, rows_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr,
    n_rows, n_directions, n_chunks,
    HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, CHUNK: tl.constexpr,
    PACK: tl.constexpr, DELTA: tl.constexpr, ROW_LISTS: tl.constexpr,
):  # fmt: skip
    """∂o [B, R, H, D], ∂r [B, R, H, K] and part [B, C, H, K, D], the sums of a chunk of rows, of the output o' and g.

    o is restored as o' + Σ r_k c_k d_k. With DELTA also δ = <o, ∂o> [B, F, P], as the attention kernels want it, of ∂o
    as it is rounded; rows without a position (`rows` [B, ROW_LISTS, R] below 0) then count as zeros.
    """
    head = tl.program_id(0) % HEADS
    chunk = tl.program_id(0) // HEADS % n_chunks
    batch = (tl.program_id(0) // HEADS // n_chunks).to(tl.int64)
    channel = tl.arange(0, BD)
    which = tl.arange(0, BK)
    wide = channel < D
    total = tl.zeros([BK, BD], tl.float32)
    for step in range(0, CHUNK, BM):
        row = chunk * CHUNK + step + tl.arange(0, BM)
        inside = row < n_rows
        valid = inside
        if ROW_LISTS > 0:
            lists = rows_ptr + (batch * ROW_LISTS + head // (HEADS // ROW_LISTS)) * n_rows
            valid = inside & (tl.load(lists + row, mask=inside, other=-1) >= 0)
        index = (batch * n_rows + row) * HEADS + head
        place = index[:, None] * D + channel[None, :]
        mask = valid[:, None] & wide[None, :]
        o = tl.load(out_ptr + place, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
        raw = grad
        for one in range(0, n_directions):
            d = tl.load(d_ptr + (head * n_directions + one) * D + channel, mask=wide, other=0.0).to(tl.float32)
            r = tl.load(r_ptr + index * n_directions + one, mask=valid, other=0.0).to(tl.float32)
            c = tl.load(along_ptr + index * n_directions + one, mask=valid, other=0.0)
            along_grad = tl.sum(grad * d[None, :], 1)
            tl.store(dr_ptr + index * n_directions + one, (-c * along_grad).to(dr_ptr.dtype.element_ty), mask=inside)
            raw -= (r * along_grad)[:, None] * d[None, :]
            o += (r * c)[:, None] * d[None, :]
        for one in range(0, n_directions):
            d = tl.load(d_ptr + (head * n_directions + one) * D + channel, mask=wide, other=0.0).to(tl.float32)
            r = tl.load(r_ptr + index * n_directions + one, mask=valid, other=0.0).to(tl.float32)
            c = tl.load(along_ptr + index * n_directions + one, mask=valid, other=0.0)
            along_grad = tl.sum(grad * d[None, :], 1)
            share = tl.sum((r * along_grad)[:, None] * o + (r * c)[:, None] * grad, 0)
            total -= tl.where((which == one)[:, None], share[None, :], 0.0)
        rounded = raw.to(raw_grad_ptr.dtype.element_ty)
        tl.store(raw_grad_ptr + place, rounded, mask=inside[:, None] & wide[None, :])
        if DELTA:
            delta = tl.sum(o * rounded.to(tl.float32), 1)
            base = (batch * (HEADS // PACK) + head // PACK) * n_rows * PACK + head % PACK
            tl.store(delta_ptr + base + row * PACK, delta, mask=inside)
    part = ((batch * n_chunks + chunk) * HEADS + head) * n_directions
    at = (part + which)[:, None] * D + channel[None, :]
    tl.store(part_ptr + at, total, mask=(which < n_directions)[:, None] & wide[None, :])


def cut(
    o: Tensor, directions: Tensor, amount: Tensor, *, along: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """o' like o, and c [..., H, K] float32 (empty without `along`).

    Args:
        o: [B, R, H, D]; directions: [H, K, D]; amount: r, [B, R, H, K]; all contiguous.
    """
    n_batch, n_rows, heads, width = o.shape
    n_directions = directions.shape[1]
    out = torch.empty_like(o)
    c = o.new_empty((*o.shape[:3], n_directions) if along else 0, dtype=torch.float32)
    arguments = {
        "o_ptr": o, "d_ptr": directions, "r_ptr": amount, "out_ptr": out, "along_ptr": c, "n_rows": n_batch * n_rows,
        "n_directions": n_directions, "HEADS": heads, "D": width, "BD": triton.next_power_of_2(width), "BM": BM,
        "ALONG": along,
    }  # fmt: skip
    if o.numel():
        with _on(o):
            run(cut_kernel, -(-n_batch * n_rows // BM) * heads, arguments, warps=4)
    return out, c


def uncut(
    out: Tensor, grad: Tensor, directions: Tensor, amount: Tensor, along: Tensor, *, rows: Tensor | None = None,
    pack: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """∂o like grad, ∂directions [H, K, D] float32, ∂amount like amount; δ [B, H / pack, R · pack], empty with pack 0.

    Args:
        out: o' [B, R, H, D]; grad: of o', like it; along: c as `cut` gives it; all contiguous.
        rows: int64 [B, 1 or G, R]; rows below 0 count as zeros.
        pack: query heads that share a place of δ.
    """
    n_batch, n_rows, heads, width = out.shape
    n_directions = directions.shape[1]
    n_chunks = -(-n_rows // CHUNK)
    raw_grad, d_amount = torch.empty_like(grad), torch.empty_like(amount)
    part = out.new_empty(n_batch * n_chunks, heads, n_directions, width, dtype=torch.float32)
    delta = out.new_empty((n_batch, heads // pack, n_rows * pack) if pack else 0, dtype=torch.float32)
    arguments = {
        "out_ptr": out, "grad_ptr": grad, "d_ptr": directions, "r_ptr": amount, "along_ptr": along, "rows_ptr": rows,
        "raw_grad_ptr": raw_grad, "dr_ptr": d_amount, "part_ptr": part, "delta_ptr": delta, "n_rows": n_rows,
        "n_directions": n_directions, "n_chunks": n_chunks, "HEADS": heads, "D": width,
        "BD": triton.next_power_of_2(width), "BK": triton.next_power_of_2(n_directions), "BM": BM, "CHUNK": CHUNK,
        "PACK": max(pack, 1), "DELTA": pack > 0, "ROW_LISTS": 0 if rows is None else rows.shape[1],
    }  # fmt: skip
    if out.numel():
        with _on(out):
            run(uncut_kernel, n_batch * n_chunks * heads, arguments, warps=4)
    return raw_grad, part.sum(0), d_amount, delta


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
