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

BM = 32
# Rows of a program: its sum for the directions' gradient is one of C, so that few are added up in the end.
CHUNK = 128


@triton.jit
def _load_shares(ptr, index, valid, which, K: tl.constexpr):
    """One number a row and direction, float32 [BM, BK], 0 beyond K."""
    at = ptr + index[:, None] * K + which[None, :]
    return tl.load(at, mask=valid[:, None] & (which < K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _load_directions(ptr, head, which, channel, K: tl.constexpr, D: tl.constexpr, dtype: tl.constexpr):
    """The directions of a head, [BK, BD] in the dtype of the outputs, as the definition rounds them."""
    at = ptr + (head * K + which)[:, None] * D + channel[None, :]
    return tl.load(at, mask=(which < K)[:, None] & (channel < D)[None, :], other=0.0).to(dtype)


@triton.jit(do_not_specialize=["n_rows"])
def cut_kernel(
    o_ptr, d_ptr, r_ptr, out_ptr, along_ptr, n_rows,
    HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """o' [N, H, D] and c [N, H, K] float32 of o [N, H, D]."""
    head = tl.program_id(0) % HEADS
    row = tl.program_id(0) // HEADS * BM + tl.arange(0, BM)
    channel, which = tl.arange(0, BD), tl.arange(0, BK)
    inside = row < n_rows
    index = row.to(tl.int64) * HEADS + head
    place = index[:, None] * D + channel[None, :]
    mask = inside[:, None] & (channel < D)[None, :]
    o = tl.load(o_ptr + place, mask=mask, other=0.0)
    r = _load_shares(r_ptr, index, inside, which, K)
    d = _load_directions(d_ptr, head, which, channel, K, D, o.dtype)
    c = tl.dot(o, tl.trans(d), input_precision="ieee")
    out = o.to(tl.float32) - tl.dot((r * c).to(o.dtype), d, input_precision="ieee")
    tl.store(along_ptr + index[:, None] * K + which[None, :], c, mask=inside[:, None] & (which < K)[None, :])
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows", "n_chunks"])
def uncut_kernel(
    out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, rows_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr,
    n_rows, n_chunks,
    HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
    CHUNK: tl.constexpr, PACK: tl.constexpr, DELTA: tl.constexpr, ROW_LISTS: tl.constexpr,
):  # fmt: skip
    """∂o [B, R, H, D], ∂r [B, R, H, K] and part [B, C, H, K, D], the sums of a chunk of rows, of the output o' and g.

    o is restored as o' + Σ r_k c_k d_k. With DELTA also δ = <o, ∂o> [B, F, P], as the attention kernels want it, of ∂o
    as it is rounded; rows without a position (`rows` [B, ROW_LISTS, R] below 0) then count as zeros.
    """
    head = tl.program_id(0) % HEADS
    chunk = tl.program_id(0) // HEADS % n_chunks
    batch = (tl.program_id(0) // HEADS // n_chunks).to(tl.int64)
    channel, which = tl.arange(0, BD), tl.arange(0, BK)
    wide = channel < D
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    d = _load_directions(d_ptr, head, which, channel, K, D, dtype)
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
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0)
        r, c = _load_shares(r_ptr, index, valid, which, K), _load_shares(along_ptr, index, valid, which, K)
        along = tl.dot(grad, tl.trans(d), input_precision="ieee")
        at = dr_ptr + index[:, None] * K + which[None, :]
        tl.store(at, (-c * along).to(dr_ptr.dtype.element_ty), mask=inside[:, None] & (which < K)[None, :])
        removed, taken = (r * along).to(dtype), (r * c).to(dtype)
        rounded = (grad.to(tl.float32) - tl.dot(removed, d, input_precision="ieee")).to(dtype)
        o += tl.dot(taken, d, input_precision="ieee")
        total -= tl.dot(tl.trans(removed), o.to(dtype), input_precision="ieee")
        total -= tl.dot(tl.trans(taken), grad, input_precision="ieee")
        tl.store(raw_grad_ptr + place, rounded, mask=inside[:, None] & wide[None, :])
        if DELTA:
            delta = tl.sum(o * rounded.to(tl.float32), 1)
            base = (batch * (HEADS // PACK) + head // PACK) * n_rows * PACK + head % PACK
            tl.store(delta_ptr + base + row * PACK, delta, mask=inside)
    part = ((batch * n_chunks + chunk) * HEADS + head) * K
    at = part_ptr + (part + which)[:, None] * D + channel[None, :]
    tl.store(at, total, mask=(which < K)[:, None] & wide[None, :])


def cut(o: Tensor, directions: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """o' like o, and c [..., H, K] float32.

    Args:
        o: [B, R, H, D]; directions: [H, K, D]; amount: r, [B, R, H, K]; all contiguous.
    """
    n_batch, n_rows, heads, _ = o.shape
    out, along = torch.empty_like(o), torch.empty(amount.shape, dtype=torch.float32, device=o.device)
    arguments = {
        "o_ptr": o, "d_ptr": directions, "r_ptr": amount, "out_ptr": out, "along_ptr": along,
        "n_rows": n_batch * n_rows, "HEADS": heads, "BM": BM, **_sizes(directions),
    }  # fmt: skip
    if o.numel():
        with _on(o):
            run(cut_kernel, -(-n_batch * n_rows // BM) * heads, arguments, warps=4)
    return out, along


def _sizes(directions: Tensor) -> dict[str, int]:
    """Products want at least 16 of everything."""
    _, k, width = directions.shape
    padded = {"BK": max(16, triton.next_power_of_2(k)), "BD": max(16, triton.next_power_of_2(width))}
    return {"K": k, "D": width, **padded}


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
        "n_chunks": n_chunks, "HEADS": heads, "BM": BM, "CHUNK": CHUNK, **_sizes(directions),
        "PACK": max(pack, 1), "DELTA": pack > 0, "ROW_LISTS": 0 if rows is None else rows.shape[1],
    }  # fmt: skip
    if out.numel():
        with _on(out):
            run(uncut_kernel, n_batch * n_chunks * heads, arguments, warps=4)
    return raw_grad, part.sum(0), d_amount, delta


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
