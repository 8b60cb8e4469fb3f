"""The backward kernels: δ and the suppression's share on rows, dQ with the forward's loop, dK/dV without atomics.

What directions add is computed before dQ's loop, which has the rows at hand, and in a pass of its own where it has not:
where keys are split, heads share a tile or tiles are blocks.

With p = 2^(s − lse), dp = <do, v> and δ = <o, do> of a row:  ds = p (dp − δ),  dq = scale Σ ds k,  dk = scale Σ ds q,
dv = Σ p do,  and for the cumulative decay c (bias c_t − c_s)  dc_s = −Σ_t ds; the row's own share Σ_s ds vanishes.

Every sum has one fixed order, so that repeated runs agree bit for bit.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim (BD padded to a power of two), K directions,
F = H / PACK packed heads, P = R · PACK packed rows of one packed head, BM rows and BN keys of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turnout.ops.attend.triton.configs import family
from turnout.ops.attend.triton.inverse import inverse_list
from turnout.ops.attend.triton.job import LOG2E, Job, capability, run
from turnout.ops.attend.triton.tiles import (
    BASE_2,
    count_below,
    fold_scores,
    key_spans,
    key_tile,
    list_start,
    load_rows,
    load_starts,
    packed_offsets,
    row_decay,
    visible,
)
from turnout.ops.suppress_kernel import LANES, add_parts, uncut, uncut_tile

SIZES = [
    "n_batch", "n_rows", "n_keys", "n_splits", "span", "window", "sinks", "n_chosen", "n_blocks",
    "n_entries", "n_tiles", "n_elements",
]  # fmt: skip
# Packed rows of a program that prepares rows, elements of one that adds splits.
PREPARE_ROWS = 16
SUM_ELEMENTS = 1024
FAN = 256
# The widest heads for which dQ's kernel restores the gradient. Of wider ones a multiprocessor has one program: nobody
# else computes while it waits (H200, 8 x 1,024 tokens, with the forward pass: 394 us; with a pass of its own 387).
WIDEST_BESIDE_DQ = 64
# dQ's arguments where nothing is to be restored before its loop.
NO_DIRECTIONS: dict[str, Any] = {
    **dict.fromkeys(("out_ptr", "directions_ptr", "suppress_ptr", "along_ptr", "raw_grad_ptr", "dr_ptr", "sums_ptr")),
    "DIRECTIONS": 0,
}


@triton.jit(do_not_specialize=SIZES)
def prepare_kernel(
    o_ptr, grad_ptr, rows_ptr, delta_ptr, n_batch, n_rows, n_keys,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PACK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, ROW_LISTS: tl.constexpr,
):  # fmt: skip
    """δ = <o, do> [B, F, P]."""
    PACKED_HEADS: tl.constexpr = HEADS // PACK
    pid = tl.program_id(0)
    packed_head = pid % PACKED_HEADS
    batch = pid // PACKED_HEADS % n_batch
    packed = pid // PACKED_HEADS // n_batch * BM + tl.arange(0, BM)
    index = packed // PACK
    head = packed_head * PACK + packed % PACK
    inside = index < n_rows
    row = load_rows(
        rows_ptr, batch, packed_head // (PACKED_HEADS // KV_HEADS), index, inside, n_rows, n_keys, ROW_LISTS
    )
    valid = row >= 0
    offset_d = tl.arange(0, BD)
    row_index = (batch.to(tl.int64) * n_rows + index) * HEADS + head
    offset = row_index[:, None] * D + offset_d[None, :]
    mask = valid[:, None] & (offset_d[None, :] < D)
    o = tl.load(o_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    delta_offset = (batch.to(tl.int64) * PACKED_HEADS + packed_head) * n_rows * PACK + packed
    tl.store(delta_ptr + delta_offset, tl.sum(o * grad, 1), mask=inside)


@triton.jit
def _dq_block(
    acc, q, grad, lse, row_hi, row_lo, delta, row, low, k_base, v_base, stride_kt, stride_vt,
    kv_row, kv_column, hi_base, lo_base, part_base,
    first_key, n_keys, window, sinks, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
    DECAY: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr, STARTS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One block of keys: dq += ds k."""
    key = first_key + tl.arange(0, BN)
    k = key_tile(k_base, stride_kt, kv_row, kv_column, first_key, n_keys, D, BD, BN, MASKED, TMA)
    v = key_tile(v_base, stride_vt, kv_row, kv_column, first_key, n_keys, D, BD, BN, MASKED, TMA)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if DECAY:
        if k.dtype == tl.float32:
            score = fold_scores(score, row_hi, row_lo, hi_base, lo_base, key, first_key, n_keys, scale, DECAY)
            weight = tl.exp2(score - lse[:, None])
        else:
            # What belongs to a row is one number.
            of_row = row_decay(row_hi, row_lo, hi_base, lo_base, first_key, DECAY)
            if DECAY == 1:
                of_key = tl.load(part_base + key, mask=key < n_keys, other=0.0)
            else:
                of_key = hi_base * (first_key - key).to(tl.float32)
            weight = tl.exp2(score * scale + of_key[None, :] - (lse - of_row)[:, None])
    else:
        weight = tl.exp2(score * scale - lse[:, None])
    if MASKED:
        seen = visible(
            row[:, None], key[None, :], low if low is None else low[:, None], window, sinks, WINDOW, SINKS, STARTS
        )
        weight = tl.where(seen, weight, 0.0)
    slope = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    ds = weight * (slope - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=SIZES)
def dq_kernel(
    q_ptr, k_ptr, v_ptr, rows_ptr, starts_ptr, hi_ptr, lo_ptr, part_ptr, list_ptr, listed_ptr, grad_ptr, lse_ptr,
    delta_ptr, dq_ptr, out_ptr, directions_ptr, suppress_ptr, along_ptr, raw_grad_ptr, dr_ptr, sums_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    n_batch, n_rows, n_keys, n_splits, span, window, sinks, n_chosen, scale, out_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PACK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr,
    ROW_LISTS: tl.constexpr, START_LISTS: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    DECAY: tl.constexpr, KEY_BLOCK: tl.constexpr, TMA: tl.constexpr, DIRECTIONS: tl.constexpr,
):  # fmt: skip
    """dq [B, R, H, D], 0 in empty slots; partial sums a split with SPLIT. The forward's loop and order.

    With DIRECTIONS, how many, `grad_ptr` is of the output behind their removal, and `uncut_tile` comes first.
    """
    PACKED_HEADS: tl.constexpr = HEADS // PACK
    STARTS: tl.constexpr = START_LISTS > 0
    pid = tl.program_id(0)
    # A block of rows that shares a list is walked in parts; without lists TILE is BM.
    PARTS: tl.constexpr = (TILE + BM - 1) // BM
    n_blocks = (n_rows * PACK + TILE - 1) // TILE
    packed_head = pid % PACKED_HEADS
    batch = pid // PACKED_HEADS % n_batch
    order = pid // PACKED_HEADS // n_batch
    split = order % n_splits
    tile = n_blocks * PARTS - 1 - order // n_splits
    kv_head = packed_head // (PACKED_HEADS // KV_HEADS)

    row_block = tile // PARTS
    place = tile % PARTS * BM + tl.arange(0, BM)
    packed = row_block * TILE + place
    index = packed // PACK
    head = packed_head * PACK + packed % PACK
    inside = (index < n_rows) & (place < TILE)
    row = load_rows(rows_ptr, batch, kv_head, index, inside, n_rows, n_keys, ROW_LISTS)
    valid = row >= 0
    last = tl.max(row, 0)
    batch64 = batch.to(tl.int64)
    offset_d = tl.arange(0, BD)
    row_index = (batch64 * n_rows + index) * HEADS + head
    grad_offset = row_index[:, None] * D + offset_d[None, :]
    mask = valid[:, None] & (offset_d[None, :] < D)
    if SPLIT:
        # A number, where offsets of their own would take registers.
        dq_ptr += split.to(tl.int64) * n_batch * n_rows * HEADS * D
    out_mask = inside[:, None] & (offset_d[None, :] < D)
    row_offset = (batch64 * PACKED_HEADS + packed_head) * n_rows * PACK + packed
    raw_ptr = grad_ptr
    if DIRECTIONS > 0:
        uncut_tile(
            out_ptr, grad_ptr, directions_ptr, suppress_ptr, along_ptr, raw_grad_ptr, dr_ptr, sums_ptr, delta_ptr,
            grad_offset, row_index, row_offset, valid, inside, packed_head,
            (batch64 * n_blocks * PARTS + tile) * HEADS + packed_head, offset_d, DIRECTIONS, D, PRECISION,
        )  # fmt: skip
        # Read again below: a value would stay in registers through the loop, memory goes to where products read it.
        tl.debug_barrier()
        raw_ptr = raw_grad_ptr

    low = load_starts(starts_ptr, batch, kv_head, index, valid, n_rows, START_LISTS)
    sink_lo, sink_hi, lo, full_lo, full_hi, hi = key_spans(
        row, low, valid, last, window, sinks, BN, WINDOW, SINKS, STARTS
    )
    if SPLIT:
        begin = lo + split * span
        sink_hi = tl.where(split == 0, sink_hi, sink_lo)
        hi = tl.minimum(hi, begin + span)
        full_lo = tl.minimum(tl.maximum(full_lo, begin), tl.maximum(hi, begin))
        full_hi = tl.minimum(tl.maximum(full_hi, begin), tl.maximum(hi, begin))
        lo = begin
    if hi <= lo:
        tl.store(dq_ptr + grad_offset, tl.zeros([BM, BD], dq_ptr.dtype.element_ty), mask=out_mask)
        return

    q_offset = packed_offsets(batch64, index, head, stride_qb, stride_qt, stride_qh)
    q = tl.load(q_ptr + q_offset[:, None] + offset_d[None, :], mask=mask, other=0.0)
    grad = tl.load(raw_ptr + grad_offset, mask=mask, other=0.0)
    delta = tl.load(delta_ptr + row_offset, mask=valid, other=0.0)
    lse = tl.load(lse_ptr + row_offset, mask=valid, other=float("inf"))
    kv_row, kv_column = batch * n_keys, kv_head * D
    if TMA:
        k_base, v_base = k_ptr, v_ptr
    else:
        k_base = k_ptr + batch64 * stride_kb + kv_head * stride_kh
        v_base = v_ptr + batch64 * stride_vb + kv_head * stride_vh
    hi_base, lo_base, part_base, row_hi, row_lo = hi_ptr, lo_ptr, part_ptr, delta, delta
    if DECAY == 1:
        hi_base = hi_ptr + (batch64 * HEADS + packed_head) * n_keys
        lo_base = lo_ptr + (batch64 * HEADS + packed_head) * n_keys
        part_base = part_ptr + (batch64 * HEADS + packed_head) * n_keys
        row_hi = tl.load(hi_base + row, mask=valid, other=0.0)
        row_lo = tl.load(lo_base + row, mask=valid, other=0.0)
    elif DECAY:
        hi_base, row_hi = tl.load(hi_ptr + packed_head) * BASE_2, row
    acc = tl.zeros([BM, BD], tl.float32)

    if KEY_BLOCK > 0:
        SUB: tl.constexpr = KEY_BLOCK // BN
        list_row = (batch64 * n_blocks + row_block) * KV_HEADS + kv_head
        for one in tl.range(0, tl.load(listed_ptr + list_row) * SUB):
            first_key = tl.load(list_ptr + list_row * n_chosen + one // SUB) * KEY_BLOCK + one % SUB * BN
            acc = _dq_block(
                acc, q, grad, lse, row_hi, row_lo, delta, row, low, k_base, v_base, stride_kt, stride_vt,
                kv_row, kv_column, hi_base, lo_base, part_base,
                first_key, n_keys, window, sinks, scale,
                D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
            )  # fmt: skip
    else:
        if SINKS:
            for first_key in tl.range(sink_lo, sink_hi, BN):
                acc = _dq_block(
                    acc, q, grad, lse, row_hi, row_lo, delta, row, low, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base, lo_base, part_base,
                    first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
        # In float32 a mask costs next to nothing beside the products, another loop registers that there are not.
        ONE_LOOP: tl.constexpr = q.dtype == tl.float32
        if ONE_LOOP:
            full_lo = hi
        if WINDOW or STARTS or ONE_LOOP:
            for first_key in tl.range(lo, full_lo, BN):
                acc = _dq_block(
                    acc, q, grad, lse, row_hi, row_lo, delta, row, low, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base, lo_base, part_base,
                    first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
        if not ONE_LOOP:
            for first_key in tl.range(full_lo, full_hi, BN):
                acc = _dq_block(
                    acc, q, grad, lse, row_hi, row_lo, delta, row, low, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base, lo_base, part_base,
                    first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, False, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
            for first_key in tl.range(full_hi, hi, BN):
                acc = _dq_block(
                    acc, q, grad, lse, row_hi, row_lo, delta, row, low, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base, lo_base, part_base,
                    first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
    acc = tl.where(valid[:, None], acc * out_scale, 0.0)
    tl.store(dq_ptr + grad_offset, acc.to(dq_ptr.dtype.element_ty), mask=out_mask)


@triton.jit
def _dkdv_tile(
    dk, dv, dc, k, v, key, of_key, first_key, first_hi, first_lo, first, n_packed, rows_base, starts_base,
    q_base, grad_base, q_matrix, grad_matrix, q_row, q_column, lse_base, row_hi_base, row_lo_base, delta_base,
    stride_qt, stride_qh, n_rows, n_keys, window, sinks, scale,
    HEADS: tl.constexpr, PACK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr, LISTED: tl.constexpr, DECAY: tl.constexpr, WINDOW: tl.constexpr,
    SINKS: tl.constexpr, STARTS: tl.constexpr, TMA: tl.constexpr, DECAY_GRAD: tl.constexpr,
):  # fmt: skip
    """One tile of packed rows into a block of keys; scores are transposed, keys × rows."""
    packed = first + tl.arange(0, BM)
    index, member = packed // PACK, packed % PACK
    offset_d = tl.arange(0, BD)
    # The first row in int64, the offsets from it in 32 bits.
    first_index = first // PACK
    from_first = index - first_index
    q_pointer = q_base + tl.cast(first_index, tl.int64) * stride_qt
    q_pointer += (from_first * stride_qt + member * stride_qh)[:, None] + offset_d[None, :]
    grad_pointer = grad_base + tl.cast(first_index, tl.int64) * (HEADS * D)
    grad_pointer += (from_first * HEADS + member)[:, None] * D + offset_d[None, :]
    inside = packed < n_packed
    if MASKED:
        mask = inside[:, None] & (offset_d[None, :] < D)
        q = tl.load(q_pointer, mask=mask, other=0.0)
        grad = tl.load(grad_pointer, mask=mask, other=0.0)
        lse = tl.load(lse_base + packed, mask=inside, other=float("inf"))
    else:
        if TMA:
            q = q_matrix.load([q_row + first, q_column])
            grad = grad_matrix.load([q_row + first, q_column])
        elif D != BD:
            q = tl.load(q_pointer, mask=offset_d[None, :] < D, other=0.0)
            grad = tl.load(grad_pointer, mask=offset_d[None, :] < D, other=0.0)
        else:
            q = tl.load(q_pointer)
            grad = tl.load(grad_pointer)
        lse = tl.load(lse_base + packed)
    row = index
    if MASKED or DECAY == 2:
        if LISTED:
            row = tl.load(rows_base + index, mask=inside, other=-1).to(tl.int32)
        else:
            row = tl.where(inside, n_keys - n_rows + index, -1)
    of_row = lse
    if DECAY == 2:
        of_row = first_hi * (row - first_key).to(tl.float32)
    elif DECAY:
        row_hi = tl.load(row_hi_base + packed, mask=inside, other=0.0)
        row_lo = tl.load(row_lo_base + packed, mask=inside, other=0.0)
        of_row = (row_hi - first_hi) + (row_lo - first_lo)
    if DECAY and q.dtype != tl.float32:
        # One number a row from here on.
        lse = lse - of_row
    score = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    if DECAY:
        if q.dtype == tl.float32:
            # The sums, which may cancel, meet first, in the order of the forward pass.
            weight = tl.exp2(score * scale + (of_row[None, :] + of_key[:, None]) - lse[None, :])
        else:
            weight = tl.exp2(score * scale + of_key[:, None] - lse[None, :])
    else:
        weight = tl.exp2(score * scale - lse[None, :])
    if MASKED:
        low = row[None, :]
        if STARTS:
            low = tl.load(starts_base + index, mask=inside, other=0).to(tl.int32)[None, :]
        seen = visible(row[None, :], key[:, None], low, window, sinks, WINDOW, SINKS, STARTS)
        weight = tl.where(seen, weight, 0.0)
    dv = tl.dot(weight.to(grad.dtype), grad, dv, input_precision=PRECISION)
    # Not before: it would hold registers while the weights are made.
    delta = tl.load(delta_base + packed, mask=inside, other=0.0) if MASKED else tl.load(delta_base + packed)
    slope = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
    ds = weight * (slope - delta[None, :])
    if DECAY_GRAD:
        dc -= tl.sum(ds, 1)
    dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv, dc


@triton.jit
def _row_spans(
    rows_base, starts_base, first_key, n_rows, n_keys, window, sinks, BN: tl.constexpr, LISTED: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, STARTS: tl.constexpr, FAN: tl.constexpr,
):  # fmt: skip
    """Indices of rows that see a block of keys: begin ≤ full_begin ≤ full_end ≤ end; those in the middle see all of it.

    Rows ascend, and so do their first keys, so that each end is one search.
    """
    last_key = first_key + BN - 1
    if LISTED:
        end = count_below(rows_base, n_rows, 2147483647, FAN)
        begin = count_below(rows_base, n_rows, first_key, FAN)
        # At most BN rows lie inside the block: the search for its end is one load.
        near = begin + tl.arange(0, BN)
        row = tl.load(rows_base + near, mask=near < n_rows, other=-1)
        full_begin = begin + tl.sum(((row >= 0) & (row < last_key)).to(tl.int32), 0)
    else:
        end = n_rows
        begin = tl.minimum(tl.maximum(first_key - (n_keys - n_rows), 0), n_rows)
        full_begin = tl.minimum(tl.maximum(last_key - (n_keys - n_rows), 0), n_rows)
    full_end = end
    listed_end = end
    if WINDOW:
        if LISTED:
            full_end = tl.minimum(full_end, count_below(rows_base, n_rows, first_key + window, FAN))
            window_end = count_below(rows_base, n_rows, last_key + window, FAN)
        else:
            full_end = tl.minimum(full_end, tl.maximum(first_key + window - (n_keys - n_rows), 0))
            window_end = tl.minimum(tl.maximum(last_key + window - (n_keys - n_rows), 0), n_rows)
        if SINKS:
            # A block with sinks is seen from everywhere; with several sequences any block may hold some.
            if not STARTS:
                end = tl.where(first_key < sinks, end, window_end)
        else:
            end = window_end
    if STARTS:
        end = tl.minimum(end, count_below(starts_base, listed_end, last_key + 1, FAN))
        full_end = tl.minimum(full_end, count_below(starts_base, listed_end, first_key + 1, FAN))
    end = tl.maximum(end, begin)
    full_end = tl.minimum(full_end, end)
    return begin, tl.minimum(full_begin, end), tl.maximum(full_end, tl.minimum(full_begin, end)), end, listed_end


@triton.jit(do_not_specialize=SIZES)
def dkdv_kernel(
    q_ptr, k_ptr, v_ptr, rows_ptr, starts_ptr, hi_ptr, lo_ptr, entry_ptr, bound_ptr, grad_ptr, q_matrix, grad_matrix,
    lse_ptr, row_hi_ptr, row_lo_ptr, delta_ptr,
    dk_ptr, dv_ptr, dc_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    n_batch, n_rows, n_keys, n_splits, window, sinks, n_blocks, n_entries, scale, out_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PACK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr,
    ROW_LISTS: tl.constexpr, START_LISTS: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    DECAY: tl.constexpr, KEY_BLOCK: tl.constexpr, FAN: tl.constexpr, TMA: tl.constexpr,
    KV_TMA: tl.constexpr, DECAY_GRAD: tl.constexpr,
):  # fmt: skip
    """dk, dv [B, S, G, D] of one block of keys, 0 where no row attends; dc [B, H, S] with the decay."""
    PACKED_HEADS: tl.constexpr = HEADS // PACK
    SHARE: tl.constexpr = PACKED_HEADS // KV_HEADS
    STARTS: tl.constexpr = START_LISTS > 0
    LISTED: tl.constexpr = ROW_LISTS > 0
    pid = tl.program_id(0)
    kv_head = pid % KV_HEADS
    batch = pid // KV_HEADS % n_batch
    order = pid // KV_HEADS // n_batch
    split = order % n_splits
    # The first keys are seen by the most rows: longest first.
    first_key = order // n_splits * BN
    batch64 = batch.to(tl.int64)
    key = first_key + tl.arange(0, BN)
    offset_d = tl.arange(0, BD)
    kv_row, kv_column = batch * n_keys, kv_head * D
    if KV_TMA:
        k_base, v_base = k_ptr, v_ptr
    else:
        k_base = k_ptr + batch64 * stride_kb + kv_head * stride_kh
        v_base = v_ptr + batch64 * stride_vb + kv_head * stride_vh
    k = key_tile(k_base, stride_kt, kv_row, kv_column, first_key, n_keys, D, BD, BN, True, KV_TMA)
    v = key_tile(v_base, stride_vt, kv_row, kv_column, first_key, n_keys, D, BD, BN, True, KV_TMA)
    rows_base, starts_base = rows_ptr, starts_ptr
    if LISTED:
        rows_base = rows_ptr + list_start(batch, kv_head, n_rows, ROW_LISTS)
    if STARTS:
        starts_base = starts_ptr + list_start(batch, kv_head, n_rows, START_LISTS)
    begin, full_begin, full_end, end, listed_end = _row_spans(
        rows_base, starts_base, first_key, n_rows, n_keys, window, sinks, BN, LISTED, WINDOW, SINKS, STARTS, FAN
    )
    n_packed = listed_end * PACK
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for share in range(0, SHARE):
        packed_head = kv_head * SHARE + share
        q_row, q_column = batch * n_rows, packed_head * PACK * D
        q_base = q_ptr + batch64 * stride_qb + packed_head * PACK * stride_qh
        grad_base = grad_ptr + (batch64 * n_rows * HEADS + packed_head * PACK) * D
        row_base = (batch64 * PACKED_HEADS + packed_head) * n_rows * PACK
        lse_base, delta_base = lse_ptr + row_base, delta_ptr + row_base
        row_hi_base, row_lo_base, of_key, first_hi, first_lo = lse_base, lse_base, hi_ptr, hi_ptr, lo_ptr
        if DECAY == 1:
            hi_base = hi_ptr + (batch64 * HEADS + packed_head) * n_keys
            lo_base = lo_ptr + (batch64 * HEADS + packed_head) * n_keys
            key_hi = tl.load(hi_base + key, mask=key < n_keys, other=0.0)
            key_lo = tl.load(lo_base + key, mask=key < n_keys, other=0.0)
            row_hi_base, row_lo_base = row_hi_ptr + row_base, row_lo_ptr + row_base
            # As in fold_scores: what a pair adds is split at the block's first key.
            first_hi, first_lo = tl.load(hi_base + first_key), tl.load(lo_base + first_key)
            of_key = (first_hi - key_hi) + (first_lo - key_lo)
        elif DECAY:
            first_hi = tl.load(hi_ptr + packed_head) * BASE_2
            of_key = first_hi * (first_key - key).to(tl.float32)
        dc = tl.zeros([BN], tl.float32)
        if KEY_BLOCK > 0:
            # Row blocks that chose it, in parts, ascending: entries bound[n] to bound[n + 1] of the inverse list.
            PARTS: tl.constexpr = (TILE + BM - 1) // BM
            pair = batch64 * KV_HEADS + kv_head
            bound = bound_ptr + pair * (n_blocks + 1) + first_key // KEY_BLOCK
            first_entry, last_entry = tl.load(bound), tl.load(bound + 1)
            each = (last_entry - first_entry + n_splits - 1) // n_splits
            first_entry += split * each
            last_entry = tl.minimum(last_entry, first_entry + each)
            for part in tl.range(first_entry * PARTS, last_entry * PARTS):
                first = tl.load(entry_ptr + pair * n_entries + part // PARTS) * TILE
                stop = tl.minimum(first + TILE, n_packed)
                first += part % PARTS * BM
                dk, dv, dc = _dkdv_tile(
                    dk, dv, dc, k, v, key, of_key, first_key, first_hi, first_lo, first, stop,
                    rows_base, starts_base, q_base, grad_base, q_matrix, grad_matrix, q_row, q_column,
                    lse_base, row_hi_base, row_lo_base, delta_base, stride_qt, stride_qh,
                    n_rows, n_keys, window, sinks, scale,
                    HEADS, PACK, D, BD, BM, PRECISION, True, LISTED, DECAY, WINDOW, SINKS, STARTS, False, DECAY_GRAD,
                )  # fmt: skip
        else:
            # Whole tiles from the first row on; the tiles that touch a masked row are masked, in float32 all of them.
            ONE_LOOP: tl.constexpr = k.dtype == tl.float32
            start = begin * PACK
            mask_end = start + (full_begin * PACK - start + BM - 1) // BM * BM
            full_stop = mask_end + tl.maximum(full_end * PACK - mask_end, 0) // BM * BM
            stop = end * PACK
            if SPLIT:
                each = ((stop - start + n_splits - 1) // n_splits + BM - 1) // BM * BM
                start += split * each
                stop = tl.minimum(stop, start + each)
                mask_end = tl.minimum(tl.maximum(mask_end, start), start + each)
                full_stop = tl.minimum(tl.maximum(full_stop, mask_end), start + each)
            if ONE_LOOP:
                mask_end = stop
            for first in tl.range(start, tl.minimum(mask_end, stop), BM):
                dk, dv, dc = _dkdv_tile(
                    dk, dv, dc, k, v, key, of_key, first_key, first_hi, first_lo, first, n_packed,
                    rows_base, starts_base, q_base, grad_base, q_matrix, grad_matrix, q_row, q_column,
                    lse_base, row_hi_base, row_lo_base, delta_base, stride_qt, stride_qh,
                    n_rows, n_keys, window, sinks, scale,
                    HEADS, PACK, D, BD, BM, PRECISION, True, LISTED, DECAY, WINDOW, SINKS, STARTS, False, DECAY_GRAD,
                )  # fmt: skip
            if not ONE_LOOP:
                for first in tl.range(mask_end, tl.minimum(full_stop, stop), BM):
                    dk, dv, dc = _dkdv_tile(
                        dk, dv, dc, k, v, key, of_key, first_key, first_hi, first_lo, first, n_packed,
                        rows_base, starts_base, q_base, grad_base, q_matrix, grad_matrix, q_row, q_column,
                        lse_base, row_hi_base, row_lo_base, delta_base, stride_qt, stride_qh,
                        n_rows, n_keys, window, sinks, scale, HEADS, PACK, D, BD, BM,
                        PRECISION, False, LISTED, DECAY, WINDOW, SINKS, STARTS, TMA, DECAY_GRAD,
                    )  # fmt: skip
                for first in tl.range(full_stop, stop, BM):
                    dk, dv, dc = _dkdv_tile(
                        dk, dv, dc, k, v, key, of_key, first_key, first_hi, first_lo, first, n_packed,
                        rows_base, starts_base, q_base, grad_base, q_matrix, grad_matrix, q_row, q_column,
                        lse_base, row_hi_base, row_lo_base, delta_base, stride_qt, stride_qh,
                        n_rows, n_keys, window, sinks, scale, HEADS, PACK, D, BD, BM,
                        PRECISION, True, LISTED, DECAY, WINDOW, SINKS, STARTS, False, DECAY_GRAD,
                    )  # fmt: skip
        if DECAY_GRAD:
            dc_base = dc_ptr + ((split.to(tl.int64) * n_batch + batch) * HEADS + packed_head) * n_keys
            tl.store(dc_base + key, dc, mask=key < n_keys)
    if SPLIT:
        before = split.to(tl.int64) * n_batch * n_keys * KV_HEADS * D
        dk_ptr += before
        dv_ptr += before
    out = (batch64 * n_keys + key) * KV_HEADS + kv_head
    out_offset = out[:, None] * D + offset_d[None, :]
    out_mask = (key < n_keys)[:, None] & (offset_d[None, :] < D)
    tl.store(dk_ptr + out_offset, (dk * out_scale).to(dk_ptr.dtype.element_ty), mask=out_mask)
    tl.store(dv_ptr + out_offset, dv.to(dv_ptr.dtype.element_ty), mask=out_mask)


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(part_ptr, out_ptr, n_elements, n_splits, BLOCK: tl.constexpr):
    """out[i] = Σ_split part[split, i], in order."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n_elements
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(0, n_splits):
        total += tl.load(part_ptr + tl.cast(split, tl.int64) * n_elements + offset, mask=mask, other=0.0)
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask=mask)


def backward(
    job: Job, grad: Tensor, o: Tensor, along: Tensor, lse: Tensor, *, need_q: bool, need_kv: bool, need_decay: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, d total [B, S, H] float64, d directions, d suppress; what is not needed or absent is empty.

    Args:
        job: the forward's inputs.
        grad: gradient of the output, contiguous [B, R, H, D].
        o: the output, contiguous [B, R, H, D].
        along: <o, d_k> of the output before suppression, [B, R, H, K]; empty without directions.
        lse: base-2 log-sum-exp [B, F, P].
        need_q: the gradient of q is wanted.
        need_kv: one of those of k, v and the decay is wanted.
        need_decay: that of the decay is wanted.
    """
    shared = job.arguments() | {"lse_ptr": lse}
    none = grad.new_empty(0)
    d, r = job.directions, job.suppress
    if need_q and along.numel() and d is not None and r is not None and _uncuts_beside_dq(job, d):
        dq, raw_grad, delta, d_directions, d_suppress = _run_dq_and_uncut(job, shared, grad, o, along, d, r)
        rows = {"grad_ptr": raw_grad, "delta_ptr": delta}
    else:
        raw_grad, delta, d_directions, d_suppress = _prepare(job, grad, o, along, shared)
        rows = {"grad_ptr": raw_grad, "delta_ptr": delta}
        dq = _run_dq(job, shared | rows | NO_DIRECTIONS) if need_q else none
    dk, dv, d_total = _run_dkdv(job, shared | rows, need_decay) if need_kv else (none, none, none.double())
    return dq, dk, dv, d_total, d_directions, d_suppress


def _uncuts_beside_dq(job: Job, directions: Tensor) -> bool:
    """Whether every row is in one tile of dQ, of one head, with room for what directions need."""
    whole = job.pack == 1 and job.blocks is None and job.key_splits(job.plan().dq)[0] == 1
    small = job.q.shape[3] <= WIDEST_BESIDE_DQ and directions.shape[1] <= LANES.value
    # Where products read registers there are none left for it.
    return whole and small and job.q.element_size() == 2 and family(capability(job.q.device)) == "hopper"


def _run_dq_and_uncut(
    job: Job, shared: dict[str, Any], grad: Tensor, o: Tensor, along: Tensor, directions: Tensor, suppress: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, the gradient before suppression, δ, and the gradients of directions and suppress."""
    raw_grad, d_directions, d_suppress = (torch.empty_like(x) for x in (grad, directions, suppress))
    delta = grad.new_empty(grad.shape[0], job.packed_heads, job.n_packed, dtype=torch.float32)
    n_parts = grad.shape[0] * job.n_tiles(job.plan().dq)
    sums = torch.empty(n_parts, *directions.shape, dtype=torch.float32, device=grad.device)
    own = {
        "grad_ptr": grad, "delta_ptr": delta, "out_ptr": o, "directions_ptr": directions, "suppress_ptr": suppress,
        "along_ptr": along, "raw_grad_ptr": raw_grad, "dr_ptr": d_suppress, "sums_ptr": sums,
        "DIRECTIONS": directions.shape[1],
    }  # fmt: skip
    dq = _run_dq(job, shared | own)
    add_parts(sums, d_directions)
    return dq, raw_grad, delta, d_directions, d_suppress


def _prepare(
    job: Job, grad: Tensor, o: Tensor, along: Tensor, shared: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient before suppression, δ, and the gradients of directions and suppress."""
    if along.numel() and job.directions is not None and job.suppress is not None:
        raw_grad, d_directions, d_suppress, delta = uncut(
            o, grad, job.directions, job.suppress, along, rows=job.rows, pack=job.pack
        )
        return raw_grad, delta, d_directions, d_suppress
    delta = grad.new_empty(grad.shape[0], job.packed_heads, job.n_packed, dtype=torch.float32)
    names = ("rows_ptr", "n_batch", "n_rows", "n_keys", "HEADS", "KV_HEADS", "PACK", "D", "BD", "ROW_LISTS")
    arguments = {name: shared[name] for name in names} | {
        "o_ptr": o, "grad_ptr": grad, "delta_ptr": delta, "BM": PREPARE_ROWS,
    }  # fmt: skip
    n_programs = -(-job.n_packed // PREPARE_ROWS) * grad.shape[0] * job.packed_heads if grad.numel() else 0
    run(prepare_kernel, n_programs, arguments, warps=4)
    if job.directions is None or job.suppress is None:
        return grad, delta, delta.new_empty(0), delta.new_empty(0)
    return grad, delta, torch.zeros_like(job.directions), torch.zeros_like(job.suppress)


def _run_dq(job: Job, arguments: dict[str, Any]) -> Tensor:
    q, tile = job.q, job.plan().dq
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not dq.numel():
        return dq
    n_tiles, n_heads = job.n_tiles(tile), q.shape[0] * job.packed_heads
    splits, span = job.key_splits(tile)
    part = dq if splits == 1 else torch.empty(splits, *dq.shape, dtype=torch.float32, device=q.device)
    own = {
        "list_ptr": job.blocks, "listed_ptr": job.n_blocks, "dq_ptr": part, "n_splits": splits, "span": span,
        "n_chosen": 0 if job.blocks is None else job.blocks.shape[3], "scale": job.scale * LOG2E,
        "out_scale": job.scale, "BM": tile.rows, "BN": tile.keys, "TILE": job.row_block_of(tile), "SPLIT": splits > 1,
        "KEY_BLOCK": 0 if job.blocks is None else job.key_block, "part_ptr": job.key_decay(tile.keys),
    }  # fmt: skip
    run(
        dq_kernel,
        n_tiles * splits * n_heads,
        arguments | job.keys_values(tile) | own,
        warps=tile.warps,
        stages=tile.stages,
    )
    _add_splits(part, dq)
    return dq


def _run_dkdv(job: Job, arguments: dict[str, Any], need_decay: bool) -> tuple[Tensor, Tensor, Tensor]:
    k, tile = job.k, job.plan().dkdv
    n_batch, n_keys, n_groups, _ = k.shape
    dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    dc = k.new_empty(0, dtype=torch.float32)
    if need_decay:
        dc = torch.empty(n_batch, job.heads, n_keys, dtype=torch.float32, device=k.device)
    if dk.numel():
        programs = -(-n_keys // tile.keys) * n_batch * n_groups
        splits = job.row_splits(tile)
        outs = [(out, _parts(out, splits)) for out in (dk, dv, dc)]
        entries = bounds = None
        n_blocks = n_entries = 0
        if job.blocks is not None:
            n_blocks, n_entries = -(-n_keys // job.key_block), job.blocks.shape[1] * job.blocks.shape[3]
            entries, bounds = inverse_list(job.blocks, n_blocks)
        keys = job.keys_values(tile)
        own = {
            "k_ptr": keys["k_ptr"], "v_ptr": keys["v_ptr"], "KV_TMA": keys["TMA"],
            "entry_ptr": entries, "bound_ptr": bounds,
            "n_blocks": n_blocks, "n_entries": n_entries,
            "dk_ptr": outs[0][1], "dv_ptr": outs[1][1], "dc_ptr": outs[2][1], "n_splits": splits,
            "scale": job.scale * LOG2E, "out_scale": job.scale, "BM": tile.rows, "BN": tile.keys,
            "TILE": job.row_block_of(tile), "SPLIT": splits > 1, "FAN": FAN, "DECAY_GRAD": need_decay,
            "row_hi_ptr": job.of_rows(arguments["hi_ptr"]), "row_lo_ptr": job.of_rows(arguments["lo_ptr"]),
            **job.row_matrices(tile, arguments["grad_ptr"]),
            "KEY_BLOCK": 0 if job.blocks is None else job.key_block,
        }  # fmt: skip
        run(dkdv_kernel, programs * splits, arguments | own, warps=tile.warps, stages=tile.stages)
        for out, part in outs:
            _add_splits(part, out)
    return dk, dv, dc.transpose(-1, -2).double().contiguous() if need_decay else dc.double()


def _parts(out: Tensor, splits: int) -> Tensor:
    return out if splits == 1 else torch.empty(splits, *out.shape, dtype=torch.float32, device=out.device)


def _add_splits(part: Tensor, out: Tensor) -> None:
    """out = Σ part over its first axis, unless they are one tensor."""
    if part is out or not out.numel():
        return
    arguments = {
        "part_ptr": part, "out_ptr": out, "n_elements": out.numel(), "n_splits": part.shape[0], "BLOCK": SUM_ELEMENTS,
    }  # fmt: skip
    run(sum_kernel, -(-out.numel() // SUM_ELEMENTS), arguments, warps=4)
