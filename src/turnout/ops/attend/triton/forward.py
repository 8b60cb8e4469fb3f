"""The forward kernel: one program folds a span of keys into a tile of routed rows.

A tile holds BM packed rows: `PACK` query heads of one kv head for each routed row, heads innermost, so that the
keys are read once for all of them. Its rows are ascending, so its keys end at the last row; keys at or before its first
row need no mask. Programs of the latest tiles start first, because they are the longest.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim (BD padded to a power of two), K directions,
F = H / PACK packed heads, P = R · PACK packed rows of one packed head, BM rows and BN keys of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turnout.ops.attend.triton.configs import SPECIALISED, STAYS_FROM, Tile
from turnout.ops.attend.triton.job import LOG2E, Job, run
from turnout.ops.attend.triton.tiles import (
    BASE_2,
    fold_scores,
    key_spans,
    key_tile,
    load_rows,
    load_starts,
    packed_offsets,
    visible,
)
from turnout.ops.suppress_kernel import load_shares, suppress_tile

# Lengths and counts: no value of theirs (1, a multiple of 16) may compile another kernel.
SIZES = ["n_batch", "n_rows", "n_keys", "n_splits", "span", "window", "sinks", "n_chosen"]
# Packed rows of a program that merges splits.
MERGE_ROWS = 16


@triton.jit
def _fold_block(
    acc, total, peak, q, row, low, row_hi, row_lo, k_base, v_base, stride_kt, stride_vt,
    kv_row, kv_column, hi_base, lo_base, first_key,
    n_keys, window, sinks, scale,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
    DECAY: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr, STARTS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One block of keys into the running softmax: m' = max(m, max s), l' = l·2^(m−m') + Σ 2^(s−m'), o' likewise."""
    key = first_key + tl.arange(0, BN)
    k = key_tile(k_base, stride_kt, kv_row, kv_column, first_key, n_keys, D, BD, BN, MASKED, TMA)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    score = fold_scores(score, row_hi, row_lo, hi_base, lo_base, key, first_key, n_keys, scale, DECAY)
    if MASKED:
        seen = visible(
            row[:, None], key[None, :], low if low is None else low[:, None], window, sinks, WINDOW, SINKS, STARTS
        )
        score = tl.where(seen, score, float("-inf"))
    if DECAY:
        new_peak = tl.maximum(peak, tl.max(score, 1))
    else:
        new_peak = tl.maximum(peak, tl.max(score, 1) * scale)
    # A row that has seen nothing yet has peak −inf; 2^(−inf − 0) = 0 keeps it empty without a NaN.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED else new_peak
    if DECAY:
        weight = tl.exp2(score - base[:, None])
    else:
        weight = tl.exp2(score * scale - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(weight, 1)
    acc = acc * shrink[:, None]
    v = key_tile(v_base, stride_vt, kv_row, kv_column, first_key, n_keys, D, BD, BN, MASKED, TMA)
    acc = tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, new_peak


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, rows_ptr, starts_ptr, hi_ptr, lo_ptr, list_ptr, listed_ptr, directions_ptr, suppress_ptr,
    o_ptr, along_ptr, lse_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    n_batch, n_rows, n_keys, n_splits, span, window, sinks, n_chosen, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PACK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr, ROW_LISTS: tl.constexpr, START_LISTS: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, DECAY: tl.constexpr, KEY_BLOCK: tl.constexpr, DIRECTIONS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """o [B, R, H, D] and lse [B, F, P] (base 2, +inf where nothing is visible); partial ones a split with SPLIT."""
    PACKED_HEADS: tl.constexpr = HEADS // PACK
    STARTS: tl.constexpr = START_LISTS > 0
    pid = tl.program_id(0)
    # A block of rows that shares a list is walked in parts; without lists TILE is BM.
    PARTS: tl.constexpr = (TILE + BM - 1) // BM
    n_blocks = (n_rows * PACK + TILE - 1) // TILE
    n_tiles = n_blocks * PARTS
    if SPLIT:
        # Neighbours read the same keys, so that all but the first find them in the cache; equal spans need no order.
        tile = n_tiles - 1 - pid % n_tiles
        pid = pid // n_tiles
        split = pid // PACKED_HEADS // n_batch
    else:
        split = 0
        tile = n_tiles - 1 - pid // PACKED_HEADS // n_batch
    packed_head = pid % PACKED_HEADS
    batch = pid // PACKED_HEADS % n_batch
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
    o_offset = row_index[:, None] * D + offset_d[None, :]
    o_mask = inside[:, None] & (offset_d[None, :] < D)
    lse_offset = (batch64 * PACKED_HEADS + packed_head) * n_rows * PACK + packed
    if SPLIT:
        # Elements before one split's output: a number, where offsets of their own would take registers.
        before = split.to(tl.int64) * n_batch * HEADS * n_rows
        o_ptr += before * D
        lse_ptr += before

    low = load_starts(starts_ptr, batch, kv_head, index, valid, n_rows, START_LISTS)
    sink_lo, sink_hi, lo, full_lo, full_hi, hi = key_spans(
        row, low, valid, last, window, sinks, BN, WINDOW, SINKS, STARTS
    )
    if SPLIT:
        begin = lo + split * span
        end = begin + span
        if begin >= hi:
            # Nothing left for this split: the merge reads only its lse.
            tl.store(lse_ptr + lse_offset, tl.full([BM], float("-inf"), tl.float32), mask=inside)
            return
        sink_hi = tl.where(split == 0, sink_hi, sink_lo)
        hi = tl.minimum(hi, end)
        full_lo = tl.minimum(tl.maximum(full_lo, begin), hi)
        full_hi = tl.minimum(tl.maximum(full_hi, begin), hi)
        lo = begin
    elif last < 0:
        tl.store(o_ptr + o_offset, tl.zeros([BM, BD], o_ptr.dtype.element_ty), mask=o_mask)
        tl.store(lse_ptr + lse_offset, tl.full([BM], float("inf"), tl.float32), mask=inside)
        return

    q_offset = packed_offsets(batch64, index, head, stride_qb, stride_qt, stride_qh)
    q = tl.load(q_ptr + q_offset[:, None] + offset_d[None, :], mask=valid[:, None] & (offset_d[None, :] < D), other=0.0)
    kv_row, kv_column = batch * n_keys, kv_head * D
    if TMA:
        k_base, v_base = k_ptr, v_ptr
    else:
        k_base = k_ptr + batch64 * stride_kb + kv_head * stride_kh
        v_base = v_ptr + batch64 * stride_vb + kv_head * stride_vh
    hi_base, lo_base, row_hi, row_lo = hi_ptr, lo_ptr, hi_ptr, lo_ptr
    if DECAY == 1:
        hi_base = hi_ptr + (batch64 * HEADS + packed_head) * n_keys
        lo_base = lo_ptr + (batch64 * HEADS + packed_head) * n_keys
        row_hi = tl.load(hi_base + row, mask=valid, other=0.0)
        row_lo = tl.load(lo_base + row, mask=valid, other=0.0)
    elif DECAY:
        hi_base, row_hi = tl.load(hi_ptr + packed_head) * BASE_2, row
    if DIRECTIONS > 0:
        # Long before they are needed: behind the loop every program would wait for them.
        amount = load_shares(suppress_ptr, row_index, inside, 0, DIRECTIONS)
    acc = tl.zeros([BM, BD], tl.float32)
    total = tl.zeros([BM], tl.float32)
    peak = tl.full([BM], float("-inf"), tl.float32)

    if KEY_BLOCK > 0:
        # Chosen blocks, sorted, each once; `listed` counts those that the tile can see.
        SUB: tl.constexpr = KEY_BLOCK // BN
        list_row = (batch64 * n_blocks + row_block) * KV_HEADS + kv_head
        for one in tl.range(0, tl.load(listed_ptr + list_row) * SUB):
            first_key = tl.load(list_ptr + list_row * n_chosen + one // SUB) * KEY_BLOCK + one % SUB * BN
            acc, total, peak = _fold_block(
                acc, total, peak, q, row, low, row_hi, row_lo, k_base, v_base, stride_kt, stride_vt,
                kv_row, kv_column, hi_base, lo_base,
                first_key, n_keys, window, sinks, scale, D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
            )  # fmt: skip
    else:
        if SINKS:
            for first_key in tl.range(sink_lo, sink_hi, BN):
                acc, total, peak = _fold_block(
                    acc, total, peak, q, row, low, row_hi, row_lo, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base,
                    lo_base, first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
        # In float32 a mask costs next to nothing beside the products, another loop registers that there are not.
        ONE_LOOP: tl.constexpr = q.dtype == tl.float32
        if ONE_LOOP:
            full_lo = hi
        if WINDOW or STARTS or ONE_LOOP:
            for first_key in tl.range(lo, full_lo, BN):
                acc, total, peak = _fold_block(
                    acc, total, peak, q, row, low, row_hi, row_lo, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base,
                    lo_base, first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
        if not ONE_LOOP:
            for first_key in tl.range(full_lo, full_hi, BN):
                acc, total, peak = _fold_block(
                    acc, total, peak, q, row, low, row_hi, row_lo, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base, lo_base, first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, False, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip
            for first_key in tl.range(full_hi, hi, BN):
                acc, total, peak = _fold_block(
                    acc, total, peak, q, row, low, row_hi, row_lo, k_base, v_base, stride_kt, stride_vt,
                    kv_row, kv_column, hi_base, lo_base, first_key, n_keys, window, sinks, scale,
                    D, BD, BN, PRECISION, True, DECAY, WINDOW, SINKS, STARTS, TMA,
                )  # fmt: skip

    some = valid & (total > 0)
    o = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    if SPLIT:
        lse = tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    else:
        lse = tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)), float("inf"))
        if DIRECTIONS > 0:
            o = suppress_tile(
                o, amount, directions_ptr, suppress_ptr, along_ptr, row_index, packed_head * PACK, packed % PACK,
                inside, offset_d, DIRECTIONS, D, PACK, o_ptr.dtype.element_ty, PRECISION,
            )  # fmt: skip
    tl.store(o_ptr + o_offset, o.to(o_ptr.dtype.element_ty), mask=o_mask)
    tl.store(lse_ptr + lse_offset, lse, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(
    part_ptr, part_lse_ptr, directions_ptr, suppress_ptr, o_ptr, along_ptr, lse_ptr, n_batch, n_rows, n_splits,
    HEADS: tl.constexpr, PACK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, DIRECTIONS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o = Σ_i 2^(lse_i − m) o_i / Σ_i 2^(lse_i − m), lse = m + log2 Σ_i 2^(lse_i − m) over the splits i of a row."""
    PACKED_HEADS: tl.constexpr = HEADS // PACK
    pid = tl.program_id(0)
    packed_head = pid % PACKED_HEADS
    batch = (pid // PACKED_HEADS % n_batch).to(tl.int64)
    packed = pid // PACKED_HEADS // n_batch * BM + tl.arange(0, BM)
    index = packed // PACK
    head = packed_head * PACK + packed % PACK
    inside = index < n_rows
    offset_d = tl.arange(0, BD)
    row_index = (batch * n_rows + index) * HEADS + head
    o_offset = row_index[:, None] * D + offset_d[None, :]
    o_mask = inside[:, None] & (offset_d[None, :] < D)
    lse_offset = (batch * PACKED_HEADS + packed_head) * n_rows * PACK + packed
    size = tl.cast(n_batch, tl.int64) * HEADS * n_rows
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    for split in range(0, n_splits):
        lse = tl.load(part_lse_ptr + split * size + lse_offset, mask=inside, other=float("-inf"))
        live = lse > float("-inf")
        part = tl.load(part_ptr + split * size * D + o_offset, mask=o_mask & live[:, None], other=0.0)
        new_peak = tl.maximum(peak, lse)
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        shrink, weight = tl.exp2(peak - base), tl.exp2(lse - base)
        acc = acc * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        peak = new_peak
    some = total > 0
    o = tl.where(some[:, None], acc / tl.where(some, total, 1.0)[:, None], 0.0)
    if DIRECTIONS > 0:
        amount = load_shares(suppress_ptr, row_index, inside, 0, DIRECTIONS)
        o = suppress_tile(
            o, amount, directions_ptr, suppress_ptr, along_ptr, row_index, packed_head * PACK, packed % PACK,
            inside, offset_d, DIRECTIONS, D, PACK, o_ptr.dtype.element_ty, PRECISION,
        )  # fmt: skip
    tl.store(o_ptr + o_offset, o.to(o_ptr.dtype.element_ty), mask=o_mask)
    tl.store(
        lse_ptr + lse_offset, tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)), float("inf")), mask=inside
    )


def forward(job: Job, *, keep: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, R, H, D], <o, d_k> before the suppression [B, R, H, K] (empty without the option) and lse [B, F, P].

    Args:
        job: the inputs.
        keep: a backward pass will want <o, d_k>; otherwise it is empty.
    """
    q, tile = job.q, job.plan().forward
    n_batch = q.shape[0]
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    n_directions = 0 if job.directions is None else job.directions.shape[1]
    along = o.new_empty((*o.shape[:3], n_directions) if n_directions and keep else 0, dtype=torch.float32)
    lse = torch.empty(n_batch, job.packed_heads, job.n_packed, dtype=torch.float32, device=q.device)
    if not o.numel():
        return o, along, lse
    n_tiles, n_heads = job.n_tiles(tile), n_batch * job.packed_heads
    splits, span = job.key_splits(tile)
    part, part_lse = o, lse
    if splits > 1:
        part = torch.empty(splits, *o.shape, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(splits, *lse.shape, dtype=torch.float32, device=q.device)
    after = {
        "directions_ptr": job.directions, "suppress_ptr": job.suppress, "along_ptr": along if along.numel() else None,
        "n_splits": splits,
    }  # fmt: skip
    own = after | {
        "o_ptr": part, "lse_ptr": part_lse, "span": span, "scale": job.scale * LOG2E, "SPLIT": splits > 1,
        "DIRECTIONS": n_directions if splits == 1 else 0,
    }  # fmt: skip
    shared = job.arguments()
    (_run_specialised if tile.tma == SPECIALISED else _run_tiles)(job, tile, n_tiles * splits * n_heads, shared, own)
    if splits > 1:
        names = ("n_batch", "n_rows", "HEADS", "PACK", "D", "BD", "PRECISION")
        merge = after | {name: shared[name] for name in names} | {
            "part_ptr": part, "part_lse_ptr": part_lse, "o_ptr": o, "lse_ptr": lse, "BM": MERGE_ROWS,
            "DIRECTIONS": n_directions,
        }  # fmt: skip
        # Directions in float32 need the registers of twice the threads.
        warps = 8 if n_directions and q.element_size() == 4 else 4
        run(merge_kernel, -(-job.n_packed // MERGE_ROWS) * n_heads, merge, warps=warps)
    return o, along, lse


def _run_tiles(job: Job, tile: Tile, works: int, shared: dict[str, Any], own: dict[str, Any]) -> None:
    lists = {
        "list_ptr": job.blocks, "listed_ptr": job.n_blocks,
        "n_chosen": 0 if job.blocks is None else job.blocks.shape[3],
        "KEY_BLOCK": 0 if job.blocks is None else job.key_block,
    }  # fmt: skip
    sizes = {"BM": tile.rows, "BN": tile.keys, "TILE": job.row_block_of(tile)}
    arguments = shared | own | lists | sizes | job.keys_values(tile)
    run(forward_kernel, works, arguments, warps=tile.warps, stages=tile.stages)


def _run_specialised(job: Job, tile: Tile, works: int, shared: dict[str, Any], own: dict[str, Any]) -> None:
    # Not at the top: older parts and other versions of Triton do without it.
    from turnout.ops.attend.triton.hopper import hopper_kernel, matrices

    cut = (job.directions, job.suppress) if own["DIRECTIONS"] else (None, None)
    described = matrices(job.q_copied(), job.k, job.v, *cut, tile)
    everything = shared | own | described | {"part_ptr": job.key_decay(tile.keys)}
    # Every program has a tile to begin with. Rows that start anywhere make tiles of any length: who is free takes one.
    stays = job.starts is None and works >= STAYS_FROM * job.n_sms()
    programs = min(job.n_sms(), works) if stays else works
    run(hopper_kernel, programs, {name: everything[name] for name in hopper_kernel.arg_names}, warps=tile.warps)
