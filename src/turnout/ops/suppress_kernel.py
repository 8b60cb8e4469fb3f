"""Removal of directions in one pass over the outputs, and its gradients in one pass over outputs and gradients.

    c = <o, d_k>,  o' = o − Σ_k r_k c_k d_k;     γ = <g, d_k>,  ∂o = g − Σ_k r_k γ_k d_k,  ∂r_k = −c_k γ_k,
    ∂d_k = −Σ_rows r_k (γ_k o + c_k g),     and, where o' is at hand and not o:     o = o' + Σ_j r_j c_j d_j,
    Σ_rows r_k γ_k o = Σ_rows r_k γ_k o' + Σ_j (Σ_rows r_k γ_k r_j c_j) d_j,     δ = <o, ∂o> = <o', g>

Every sum over channels or directions is a product of tiles, of LANES directions at a time: what is missing to them is
zeros, which cost matrix units next to nothing. Operands are rounded to the dtype of the outputs, sums are float32.

Axes: B batch, R rows (N of all sequences), H heads, D head dim (BD padded to a power of two), K directions,
BM rows of a program, C programs a head, F = H / PACK packed heads, P = R · PACK.
"""

# The operators' schemas are read from their annotations, which therefore are not postponed.
import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turnout.ops.attend.triton.configs import family
from turnout.ops.attend.triton.job import capability, precision, run

# Directions of one product: the least that it takes.
LANES = tl.constexpr(16)
# Bytes of outputs of a program, forward and backward: the tallest that do not spill. Half precision on newer devices
# multiplies from shared memory, everything else from registers.
TILE_BYTES, TILE_BYTES_BACKWARD, FROM_REGISTERS = 16384, 16384, 4096
# Channels that fit into registers at a time.
WIDEST = 128
# Programs' sums that are added up at a time, and how many columns of them: enough programs that wait at the same time.
FAN, COLUMNS = 256, 32


@triton.jit
def load_shares(ptr, index, valid, first, K: tl.constexpr):
    """One number a row and direction from `first` on, [BM, LANES], 0 beyond K; `index` is (b·R + r)·H + h."""
    which = first + tl.arange(0, LANES)
    at = ptr + index[:, None] * K + which[None, :]
    return tl.load(at, mask=valid[:, None] & (which < K)[None, :], other=0.0)


@triton.jit
def store_shares(ptr, index, valid, first, value, K: tl.constexpr):
    """The inverse of `load_shares`."""
    which = first + tl.arange(0, LANES)
    at = ptr + index[:, None] * K + which[None, :]
    tl.store(at, value.to(ptr.dtype.element_ty), mask=valid[:, None] & (which < K)[None, :])


@triton.jit
def load_directions(ptr, head, first, channel, K: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr):
    """Directions of a head from `first` on, [LANES, BD], zeros beyond K."""
    which = first + tl.arange(0, LANES)
    at = ptr + (head * K + which)[:, None] * D + channel[None, :]
    return tl.load(at, mask=(which < K)[:, None] & (channel < D)[None, :], other=0.0).to(DTYPE)


@triton.jit
def suppress_tile(
    o, r, directions_ptr, suppress_ptr, along_ptr, row_index, first_head, member, valid, channel,
    K: tl.constexpr, D: tl.constexpr, PACK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o' = o − Σ_k r_k <o, d_k> d_k for a tile o [BM, BD] in float32 of PACK heads; a row's head is that of `member`.

    `r` holds the first amounts as `load_shares` gives them, so that they are loaded long before they are needed.
    Where `along_ptr` is not None it takes <o, d_k>, with which the backward pass restores o from o'.
    """
    rounded = o.to(DTYPE)
    for first in tl.static_range(0, K, LANES):
        if first > 0:
            r = load_shares(suppress_ptr, row_index, valid, first, K)
        amount = r.to(tl.float32)
        along = amount * 0.0
        for one in tl.range(0, PACK, num_stages=1):
            d = load_directions(directions_ptr, first_head + one, first, channel, K, D, DTYPE)
            c = tl.dot(rounded, tl.trans(d), input_precision=PRECISION)
            if PACK > 1:
                c = tl.where((member == one)[:, None], c, 0.0)
            o = tl.dot((-amount * c).to(DTYPE), d, o, input_precision=PRECISION)
            along += c
        if along_ptr is not None:
            store_shares(along_ptr, row_index, valid, first, along, K)
    return o


@triton.jit(do_not_specialize=["n_rows"])
def cut_kernel(
    o_ptr, d_ptr, r_ptr, out_ptr, n_rows,
    HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o' [N, H, D] of o [N, H, D]."""
    head = tl.program_id(0) % HEADS
    row = tl.program_id(0) // HEADS * BM + tl.arange(0, BM)
    channel = tl.arange(0, BD)
    inside = row < n_rows
    index = row.to(tl.int64) * HEADS + head
    place = index[:, None] * D + channel[None, :]
    mask = inside[:, None] & (channel < D)[None, :]
    dtype: tl.constexpr = o_ptr.dtype.element_ty
    o = tl.load(o_ptr + place, mask=mask, other=0.0)
    r = load_shares(r_ptr, index, inside, 0, K)
    out = suppress_tile(
        o.to(tl.float32), r, d_ptr, r_ptr, None, index, head, row, inside, channel, K, D, 1, dtype, PRECISION
    )
    tl.store(out_ptr + place, out.to(dtype), mask=mask)


@triton.jit
def uncut_shares(
    o, grad, d_ptr, r_ptr, along_ptr, index, valid, head, first, channel,
    K: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d [LANES, BD]; of every row −c γ in float32 and r c, r γ as operands, [BM, LANES]; c from memory or from o."""
    d = load_directions(d_ptr, head, first, channel, K, D, grad.dtype)
    r = load_shares(r_ptr, index, valid, first, K).to(tl.float32)
    if along_ptr is not None:
        c = load_shares(along_ptr, index, valid, first, K)
        along_grad = tl.dot(grad, tl.trans(d), input_precision=PRECISION)
    else:
        c = tl.dot(o, tl.trans(d), input_precision=PRECISION)
        along_grad = tl.dot(grad, tl.trans(d), input_precision=PRECISION)
    return d, -c * along_grad, (r * c).to(grad.dtype), (r * along_grad).to(grad.dtype)


@triton.jit
def sum_rows(o, grad, taken, removed, PRECISION: tl.constexpr):
    """Σ_rows r_k (γ_k o + c_k g) of a tile, [BD, LANES]."""
    total = tl.dot(tl.trans(o), removed, input_precision=PRECISION)
    return tl.dot(tl.trans(grad), taken, total, input_precision=PRECISION)


@triton.jit
def restore_rows(total, d, taken, removed, PRECISION: tl.constexpr):
    """The same sums where o' stood for o: Σ_j (Σ_rows r_k γ_k r_j c_j) d_j more."""
    both = tl.dot(tl.trans(taken), removed, input_precision=PRECISION)
    return tl.dot(tl.trans(d), both.to(d.dtype), total, input_precision=PRECISION)


@triton.jit
def store_sums(part_ptr, place, total, first, channel, K: tl.constexpr, D: tl.constexpr):
    """−Σ of one program and head to part[place], [K, D]."""
    which = first + tl.arange(0, LANES)
    at = (place * K + which)[None, :] * D + channel[:, None]
    tl.store(part_ptr + at, -total, mask=(which < K)[None, :] & (channel < D)[:, None])


@triton.jit
def uncut_tile(
    out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr, offset, index, delta_offset,
    valid, inside, head, place, channel, K: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂o, ∂r and δ of a tile of rows of one head and, at part[place], its sums; at most LANES directions.

    Args:
        along_ptr: c of the o' at `out_ptr`; None: that is o. delta_ptr: None: δ is not wanted.
        offset: of rows and channels in [B, R, H, D]; index: (b·R + r)·H + h; delta_offset: where δ of a row is.
        valid, inside: rows that count; rows that are stored.
    """
    mask = valid[:, None] & (channel < D)[None, :]
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0)
    out = tl.load(out_ptr + offset, mask=mask, other=0.0)
    if delta_ptr is not None:
        tl.store(delta_ptr + delta_offset, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1), mask=inside)
    d, d_amount, taken, removed = uncut_shares(
        out, grad, d_ptr, r_ptr, along_ptr, index, valid, head, 0, channel, K, D, PRECISION
    )
    store_shares(dr_ptr, index, inside, 0, d_amount, K)
    total = sum_rows(out, grad, taken, removed, PRECISION)
    if along_ptr is not None:
        total = restore_rows(total, d, taken, removed, PRECISION)
    store_sums(part_ptr, place, total, 0, channel, K, D)
    # What is removed is small beside the gradient, so that its rounding is too.
    raw = grad - tl.dot(removed, d, input_precision=PRECISION).to(grad.dtype)
    tl.store(raw_grad_ptr + offset, raw, mask=inside[:, None] & (channel < D)[None, :])


@triton.jit
def uncut_in_parts(
    out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr, row_offset, index,
    delta_offset, valid, inside, head, place, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`uncut_tile` with WIDE channels in registers at a time, read once for the shares and once for what they scale."""
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    r = load_shares(r_ptr, index, valid, 0, K).to(tl.float32)
    c, along_grad = r * 0.0, r * 0.0
    delta = tl.sum(c, 1)
    for first in tl.range(0, BD, WIDE, num_stages=1):
        channel = first + tl.arange(0, WIDE)
        mask = valid[:, None] & (channel < D)[None, :]
        grad = tl.load(grad_ptr + row_offset[:, None] + channel[None, :], mask=mask, other=0.0)
        out = tl.load(out_ptr + row_offset[:, None] + channel[None, :], mask=mask, other=0.0)
        delta += tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
        d = load_directions(d_ptr, head, 0, channel, K, D, dtype)
        along_grad = tl.dot(grad, tl.trans(d), along_grad, input_precision=PRECISION)
        if along_ptr is None:
            c = tl.dot(out, tl.trans(d), c, input_precision=PRECISION)
    if along_ptr is not None:
        c = load_shares(along_ptr, index, valid, 0, K)
    if delta_ptr is not None:
        tl.store(delta_ptr + delta_offset, delta, mask=inside)
    store_shares(dr_ptr, index, inside, 0, -c * along_grad, K)
    taken, removed = (r * c).to(dtype), (r * along_grad).to(dtype)
    for first in tl.range(0, BD, WIDE, num_stages=1):
        channel = first + tl.arange(0, WIDE)
        mask = valid[:, None] & (channel < D)[None, :]
        grad = tl.load(grad_ptr + row_offset[:, None] + channel[None, :], mask=mask, other=0.0)
        out = tl.load(out_ptr + row_offset[:, None] + channel[None, :], mask=mask, other=0.0)
        d = load_directions(d_ptr, head, 0, channel, K, D, dtype)
        total = sum_rows(out, grad, taken, removed, PRECISION)
        if along_ptr is not None:
            total = restore_rows(total, d, taken, removed, PRECISION)
        store_sums(part_ptr, place, total, 0, channel, K, D)
        raw = grad - tl.dot(removed, d, input_precision=PRECISION).to(dtype)
        stored = inside[:, None] & (channel < D)[None, :]
        tl.store(raw_grad_ptr + row_offset[:, None] + channel[None, :], raw, mask=stored)


@triton.jit(do_not_specialize=["n_rows", "n_chunks"])
def uncut_kernel(
    out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, rows_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr, n_rows, n_chunks,
    HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, PACK: tl.constexpr,
    ROW_LISTS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """∂o [B, R, H, D], ∂r [B, R, H, K] and part [B, C, H, K, D], the sums of a program's rows.

    With `along_ptr` of the output o', else of o. With `delta_ptr` also δ = <o', g> [B, F, P], as the attention kernels
    want it; rows without a position (`rows` [B, ROW_LISTS, R] below 0) then count as zeros.
    """
    head = tl.program_id(0) % HEADS
    chunk = tl.program_id(0) // HEADS % n_chunks
    batch = (tl.program_id(0) // HEADS // n_chunks).to(tl.int64)
    channel = tl.arange(0, BD)
    row = chunk * BM + tl.arange(0, BM)
    inside = row < n_rows
    valid = inside
    if ROW_LISTS > 0:
        lists = rows_ptr + (batch * ROW_LISTS + head // (HEADS // ROW_LISTS)) * n_rows
        valid = inside & (tl.load(lists + row, mask=inside, other=-1) >= 0)
    index = (batch * n_rows + row) * HEADS + head
    offset = index[:, None] * D + channel[None, :]
    delta_offset = (batch * (HEADS // PACK) + head // PACK) * n_rows * PACK + head % PACK + row * PACK
    place = (batch * n_chunks + chunk) * HEADS + head
    if K <= LANES and WIDE < BD:
        uncut_in_parts(
            out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr, index * D, index,
            delta_offset, valid, inside, head, place, K, D, BD, WIDE, PRECISION,
        )  # fmt: skip
        return
    if K <= LANES:
        uncut_tile(
            out_ptr, grad_ptr, d_ptr, r_ptr, along_ptr, raw_grad_ptr, dr_ptr, part_ptr, delta_ptr, offset, index,
            delta_offset, valid, inside, head, place, channel, K, D, PRECISION,
        )  # fmt: skip
        return
    mask = valid[:, None] & (channel < D)[None, :]
    out = tl.load(out_ptr + offset, mask=mask, other=0.0)
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0)
    if delta_ptr is not None:
        tl.store(delta_ptr + delta_offset, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1), mask=inside)
    raw = grad.to(tl.float32)
    for first in tl.static_range(0, K, LANES):
        d, d_amount, taken, removed = uncut_shares(
            out, grad, d_ptr, r_ptr, along_ptr, index, valid, head, first, channel, K, D, PRECISION
        )
        store_shares(dr_ptr, index, inside, first, d_amount, K)
        raw -= tl.dot(removed, d, input_precision=PRECISION)
        total = sum_rows(out, grad, taken, removed, PRECISION)
        if along_ptr is not None:
            for other in tl.static_range(0, K, LANES):
                d, _, taken, _ = uncut_shares(
                    out, grad, d_ptr, r_ptr, along_ptr, index, valid, head, other, channel, K, D, PRECISION
                )
                total = restore_rows(total, d, taken, removed, PRECISION)
        store_sums(part_ptr, place, total, first, channel, K, D)
    tl.store(raw_grad_ptr + offset, raw.to(grad.dtype), mask=inside[:, None] & (channel < D)[None, :])


@triton.jit(do_not_specialize=["n_parts", "n_columns"])
def add_kernel(part_ptr, out_ptr, n_parts, n_columns, FAN: tl.constexpr, COLUMNS: tl.constexpr):
    """out[i] = Σ part[:, i] over all programs, [n_columns] of [n_parts, n_columns], in one fixed order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, n_parts, FAN):
        part = (first + tl.arange(0, FAN)).to(tl.int64)
        mask = (part < n_parts)[:, None] & (column < n_columns)[None, :]
        total += tl.sum(tl.load(part_ptr + part[:, None] * n_columns + column[None, :], mask=mask, other=0.0), 0)
    tl.store(out_ptr + column, total.to(out_ptr.dtype.element_ty), mask=column < n_columns)


@torch.library.custom_op("turnout::cut_directions", mutates_args=())
def cut_directions(o: Tensor, directions: Tensor, amount: Tensor) -> Tensor:
    """o' like o, contiguous.

    Args:
        o: [B, R, H, D]; directions: [H, K, D]; amount: r, [B, R, H, K].
    """
    o = o.contiguous()
    n_batch, n_rows, heads, _ = o.shape
    out, sizes = torch.empty_like(o), _sizes(o, directions, TILE_BYTES)
    arguments = {
        "o_ptr": o, "d_ptr": directions.contiguous(), "r_ptr": amount.contiguous(), "out_ptr": out,
        "n_rows": n_batch * n_rows, **sizes,
    }  # fmt: skip
    with _on(o):
        run(cut_kernel, -(-n_batch * n_rows // sizes["BM"]) * heads, arguments, warps=4)
    return out


@cut_directions.register_fake
def _fake_cut(o: Tensor, directions: Tensor, amount: Tensor) -> Tensor:
    return o.new_empty(o.shape)


@torch.library.custom_op("turnout::cut_directions_backward", mutates_args=())
def cut_directions_backward(
    o: Tensor, grad: Tensor, directions: Tensor, amount: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """∂o, ∂directions, ∂amount."""
    return uncut(o.contiguous(), grad.contiguous(), directions.contiguous(), amount.contiguous())[:3]


@cut_directions_backward.register_fake
def _fake_uncut(o: Tensor, grad: Tensor, directions: Tensor, amount: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return o.new_empty(o.shape), directions.new_empty(directions.shape), amount.new_empty(amount.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    o, directions, amount = ctx.saved_tensors
    return cut_directions_backward(o, grad, directions, amount)


cut_directions.register_autograd(_gradients, setup_context=_save)


def uncut(
    out: Tensor, grad: Tensor, directions: Tensor, amount: Tensor, along: Tensor | None = None, *,
    rows: Tensor | None = None, pack: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """∂o like grad, ∂directions like directions, ∂amount like amount; δ [B, H / pack, R · pack], empty with pack 0.

    Args:
        out: o' [B, R, H, D] if `along` is given, else o; grad: of o', like it; all contiguous.
        along: c, [B, R, H, K] float32.
        rows: int64 [B, 1 or G, R]; rows below 0 count as zeros.
        pack: query heads that share a place of δ.
    """
    n_batch, n_rows, heads, width = out.shape
    from_shared = out.element_size() == 2 and family(capability(out.device)) == "hopper"
    n_bytes = TILE_BYTES_BACKWARD if from_shared else FROM_REGISTERS
    n_directions, sizes = directions.shape[1], _sizes(out, directions, n_bytes)
    n_chunks = -(-n_rows // sizes["BM"])
    raw_grad, d_amount, d_directions = (torch.empty_like(x) for x in (grad, amount, directions))
    part = out.new_empty(n_batch * n_chunks, heads, n_directions, width, dtype=torch.float32)
    delta = out.new_empty((n_batch, heads // pack, n_rows * pack) if pack else 0, dtype=torch.float32)
    arguments = sizes | {
        "out_ptr": out, "grad_ptr": grad, "d_ptr": directions, "r_ptr": amount, "along_ptr": along, "rows_ptr": rows,
        "raw_grad_ptr": raw_grad, "dr_ptr": d_amount, "part_ptr": part, "delta_ptr": delta if pack else None,
        "n_rows": n_rows, "n_chunks": n_chunks, "PACK": max(pack, 1), "ROW_LISTS": 0 if rows is None else rows.shape[1],
        "WIDE": sizes["BD"] if from_shared else min(sizes["BD"], WIDEST),
    }  # fmt: skip
    if not out.numel():
        return raw_grad, d_directions.zero_(), d_amount, delta
    with _on(out):
        # Products in float32 need the registers of twice the threads.
        run(uncut_kernel, n_batch * n_chunks * heads, arguments, warps=8 if out.element_size() == 4 else 4)
        add_parts(part, d_directions)
    return raw_grad, d_directions, d_amount, delta


def add_parts(part: Tensor, out: Tensor) -> None:
    """out = Σ part over its first axis, in one fixed order."""
    arguments = {
        "part_ptr": part, "out_ptr": out, "n_parts": part.shape[0], "n_columns": out.numel(), "FAN": FAN,
        "COLUMNS": COLUMNS,
    }  # fmt: skip
    run(add_kernel, -(-out.numel() // COLUMNS), arguments, warps=4)


def _sizes(out: Tensor, directions: Tensor, n_bytes: int) -> dict[str, Any]:
    """Products want at least 16 of everything."""
    _, heads, width = out.shape[1:]
    padded = max(16, triton.next_power_of_2(width))
    rows = min(64, max(16, n_bytes // (padded * out.element_size())))
    known = {"HEADS": heads, "K": directions.shape[1], "D": width, "BD": padded, "BM": rows}
    return known | {"PRECISION": precision(out.dtype)}


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
