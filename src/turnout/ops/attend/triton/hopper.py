"""The forward kernel for compute capability 9.0 in Gluon: who copies and who computes are different warps.

A program holds two tiles of 64 packed rows of one packed head. One warp copies blocks of keys and values into a ring
of shared memory; a warpgroup a tile multiplies them, each up to its own last row. A warpgroup issues the product of
the next block's scores and that of this block's values together, and computes the softmax while the second one runs
(Shah et al. 2024, FlashAttention-3, sec. 3.2). Windows and packed sequences bound the blocks of a tile from below; a
decay adds one number a key to the scores and one a row to their maximum. No sinks and no key lists.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, F = H / PACK packed heads, P = R · PACK
packed rows of one packed head, BM rows of a warpgroup and BN keys of a block.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from turnout.ops.attend.triton.configs import Tile
from turnout.ops.attend.triton.hopper_directions import APART, LANES, remove_directions

# One warpgroup multiplies 64 rows at a time.
BM = gl.constexpr(64)
WARPS = gl.constexpr(4)
# Registers a thread: two warpgroups that compute, and one warp that copies, which holds more where rows have a first
# key. What a program is launched with, 168 a thread of three warpgroups, is all there is: more would wait forever.
COMPUTING, COPYING = gl.constexpr(240), gl.constexpr(24)
COMPUTING_LOWS, COPYING_LOWS = gl.constexpr(232), gl.constexpr(40)
# log2(e): from natural logarithms to those of base 2.
BASE_2 = gl.constexpr(1.4426950408889634)
# Triton 3.6 has the barrier under its old name.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def _turns(n_work):
    """How many tiles this program takes: one of every round, forth and back through the list of all."""
    n_programs = gl.num_programs(0)
    full = n_work // n_programs
    last = gl.where(full % 2 == 0, gl.program_id(0), n_programs - 1 - gl.program_id(0))
    return full + (last < n_work - full * n_programs).to(gl.int32)


@gluon.jit
def _tile_of(turn, n_tiles, n_batch, PACKED_HEADS: gl.constexpr, SPLIT: gl.constexpr):
    """Tile, packed head, sequence and split of one turn; the latest tiles come first, because they are the longest."""
    n_programs = gl.num_programs(0)
    one = turn * n_programs + gl.where(turn % 2 == 0, gl.program_id(0), n_programs - 1 - gl.program_id(0))
    if SPLIT:
        # Neighbours read the same keys, so that all but the first find them in the cache; equal spans need no order.
        tile = n_tiles - 1 - one % n_tiles
        one = one // n_tiles
        split = one // PACKED_HEADS // n_batch
    else:
        tile = n_tiles - 1 - one // PACKED_HEADS // n_batch
        split = 0
    # Every head in turn for every program, because heads differ in how far they read.
    head = (one + one // PACKED_HEADS) % PACKED_HEADS
    return tile, head, one // PACKED_HEADS % n_batch, split


@gluon.jit
def _spans_of(
    rows_ptr, starts_ptr, tile, packed_head, batch, split, span, window, n_rows, n_keys,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, BN: gl.constexpr, SPLIT: gl.constexpr,
    ROW_LISTS: gl.constexpr, START_LISTS: gl.constexpr, WINDOW: gl.constexpr, N_WARPS: gl.constexpr,
    HALF: gl.constexpr,
):  # fmt: skip
    """First key; how many blocks both tiles of a program read; of one tile the first block, the end, and from where to
    where they need no mask.

    At least one block, so that an empty tile takes the same way: every key of it is masked.
    """
    # Every warp holds all rows: nothing is exchanged between warps.
    FLAT: gl.constexpr = gl.BlockedLayout([4], [32], [N_WARPS], [0])
    MOST: gl.constexpr = 2147483647
    place = gl.arange(0, 2 * BM, FLAT)
    packed = tile * 2 * BM + place
    row = _positions(rows_ptr, packed, batch, packed_head, n_rows, n_keys, HEADS, KV_HEADS, PACK, ROW_LISTS)
    own = gl.where(place // BM == HALF, row, -1)
    last = gl.max(own, 0)
    first = gl.minimum(gl.min(gl.where(own >= 0, own, MOST), 0), last)
    lo = split * span
    begin = split * 0
    open_lo = split * 0 + 1
    if WINDOW or START_LISTS > 0:
        low = _first_keys(
            starts_ptr, row, packed, batch, packed_head, n_rows, window, HEADS, KV_HEADS, PACK, START_LISTS, WINDOW
        )
        lo += gl.minimum(gl.min(gl.where(row >= 0, low, MOST), 0), n_keys - 1) // BN * BN
        begin = gl.maximum((gl.minimum(gl.min(gl.where(own >= 0, low, MOST), 0), n_keys) - lo) // BN, 0)
        open_lo = (gl.max(gl.where(own >= 0, low, 0), 0) - lo + BN - 1) // BN
    stop = n_keys
    if SPLIT:
        stop = gl.minimum(lo + span, n_keys)
    both = gl.maximum((gl.minimum(stop, gl.max(row, 0) + 1) - lo + BN - 1) // BN, 1)
    end = gl.maximum((gl.minimum(stop, last + 1) - lo + BN - 1) // BN, 1)
    begin = gl.minimum(begin, end - 1)
    open_hi = gl.minimum(gl.maximum((gl.minimum(first + 1, stop) - lo) // BN, begin + 1), end)
    return lo, both, begin, gl.minimum(gl.maximum(open_lo, begin + 1), open_hi), open_hi, end


@gluon.jit
def _copy_blocks(
    q_matrix, k_matrix, v_matrix, d_matrix, r_matrix, rows_ptr, starts_ptr, q_tile, d_tile, r_tile, ring, bars, q_bars,
    n_work, n_batch, n_rows, n_keys, span, window,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, D: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SPLIT: gl.constexpr, ROW_LISTS: gl.constexpr, START_LISTS: gl.constexpr,
    WINDOW: gl.constexpr, DIRECTIONS: gl.constexpr,
):  # fmt: skip
    """The copying warp: keys, then values of every block, as soon as both warpgroups have left their place.

    The rows of a tile come before its keys, while the warpgroups are still at the tile before; with them come the
    directions of its head, and how much of each is removed.
    """
    PACKED_HEADS: gl.constexpr = HEADS // PACK
    n_tiles = (n_rows * PACK + 2 * BM - 1) // (2 * BM)
    base = 0
    for turn in range(_turns(n_work)):
        tile, packed_head, batch, split = _tile_of(turn, n_tiles, n_batch, PACKED_HEADS, SPLIT)
        lo, n_blocks, _, _, _, _ = _spans_of(
            rows_ptr, starts_ptr, tile, packed_head, batch, split, span, window, n_rows, n_keys,
            HEADS, KV_HEADS, PACK, BN, SPLIT, ROW_LISTS, START_LISTS, WINDOW, 1, 0,
        )  # fmt: skip
        if q_matrix is not None:
            for half in gl.static_range(2):
                own = turn % 2 * 2 + half
                mbarrier.wait(q_bars.index(4 + own), ((turn // 2) & 1) ^ 1)
                first = batch * n_rows + (2 * tile + half) * BM
                if DIRECTIONS > 0:
                    mbarrier.expect(
                        q_bars.index(own),
                        q_matrix.block_type.nbytes + d_matrix.block_type.nbytes + r_matrix.block_type.nbytes,
                    )
                    first_direction = packed_head * DIRECTIONS // APART * APART
                    tma.async_copy_global_to_shared(
                        d_matrix, [first_direction, 0], q_bars.index(own), d_tile.index(own)
                    )
                    tma.async_copy_global_to_shared(
                        r_matrix, [first, first_direction], q_bars.index(own), r_tile.index(own)
                    )
                else:
                    mbarrier.expect(q_bars.index(own), q_matrix.block_type.nbytes)
                tma.async_copy_global_to_shared(
                    q_matrix, [first, packed_head * D], q_bars.index(own), q_tile.index(own)
                )
        kv_column = packed_head // (PACKED_HEADS // KV_HEADS) * D
        for block in range(n_blocks):
            place = (base + block) % STAGES
            # The first round waits for nobody: a fresh barrier counts as one phase behind.
            parity = (((base + block) // STAGES) & 1) ^ 1
            at = batch * n_keys + lo + block * BN
            mbarrier.wait(bars.index(2 * STAGES + place), parity)
            mbarrier.expect(bars.index(place), k_matrix.block_type.nbytes)
            tma.async_copy_global_to_shared(k_matrix, [at, kv_column], bars.index(place), ring.index(place))
            mbarrier.wait(bars.index(3 * STAGES + place), parity)
            mbarrier.expect(bars.index(STAGES + place), v_matrix.block_type.nbytes)
            tma.async_copy_global_to_shared(
                v_matrix, [at, kv_column], bars.index(STAGES + place), ring.index(STAGES + place)
            )
        base += n_blocks


@gluon.jit
def _soften(
    score,
    of_key,
    of_row,
    reach,
    low,
    offset,
    peak,
    total,
    scale,
    MASKED: gl.constexpr,
    DECAY: gl.constexpr,
    LOWS: gl.constexpr,
):
    """Weights 2^(s − m') of one block, the factor 2^(m − m') of what was summed before, m' and the new sum.

    A row sees the keys of the block from its first one up to its reach: offset ≤ row − first key. The decay c_t − c_s
    is split at the first key f of the block into (c_t − c_f), added to numbers a row, and (c_f − c_s), added to scores.
    """
    if DECAY:
        score = score * scale + of_key[None, :]
    if MASKED:
        seen = offset[None, :] <= reach[:, None]
        if LOWS:
            seen = seen & (offset[None, :] >= low[:, None])
        score = gl.where(seen, score, float("-inf"))
    if DECAY:
        new_peak = gl.maximum(peak, gl.max(score, 1) + of_row)
    else:
        new_peak = gl.maximum(peak, gl.max(score, 1) * scale)
    # A row that has seen nothing yet has peak −inf; 2^(−inf − 0) = 0 keeps it empty without a NaN.
    base = new_peak
    if MASKED:
        base = gl.where(new_peak == float("-inf"), 0.0, new_peak)
    if DECAY:
        weight = gl.exp2(score - (base - of_row)[:, None])
    else:
        weight = gl.exp2(score * scale - base[:, None])
    shrink = gl.exp2(peak - base)
    return weight, shrink, new_peak, total * shrink + gl.sum(weight, 1)


@gluon.jit
def _decay_of(
    part_ptr, hi_ptr, lo_ptr, decay_base, first_key, offset, row, row_hi, row_lo, n_keys, DECAY: gl.constexpr
):  # fmt: skip
    """(c_f − c_s) of every key of a block that starts at f, (c_t − c_f) of every row; nothing without a decay.

    c is a sum of two float32, so that the difference of two large sums carries only its own rounding.
    """
    of_key, of_row = row_hi, row_lo
    if DECAY == 2:
        # One rate: `row_hi` is the head's, in base 2.
        of_key = -row_hi * offset.to(gl.float32)
        of_row = row_hi * (row - first_key).to(gl.float32)
    elif DECAY:
        # Keys past the end are masked.
        at = gl.minimum(first_key, n_keys - 1)
        of_key = gl.load(part_ptr + decay_base + gl.minimum(first_key + offset, n_keys - 1))
        of_row = (row_hi - gl.load(hi_ptr + decay_base + at)) + (row_lo - gl.load(lo_ptr + decay_base + at))
    return of_key, of_row


@gluon.jit
def _fold(
    begin, end, base, acc, p, total, peak, row, low, row_hi, row_lo, part_ptr, hi_ptr, lo_ptr, decay_base,
    q, ring, bars, first_key, n_keys, scale,
    BN: gl.constexpr, STAGES: gl.constexpr, SCORES: gl.constexpr, WEIGHTS: gl.constexpr, MASKED: gl.constexpr,
    DECAY: gl.constexpr, LOWS: gl.constexpr,
):  # fmt: skip
    """Blocks begin ≤ j < end: scores of block j while the weights `p` of block j − 1 meet their values.

    `base` blocks of earlier tiles have passed the rings.
    """
    for block in range(begin, end):
        count = base + block
        place = count % STAGES
        before = (count - 1) % STAGES
        mbarrier.wait(bars.index(place), (count // STAGES) & 1)
        nothing = gl.zeros([BM, BN], gl.float32, SCORES)
        score = warpgroup_mma(q, ring.index(place).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(bars.index(STAGES + before), ((count - 1) // STAGES) & 1)
        acc = warpgroup_mma(p, ring.index(STAGES + before), acc, is_async=True)
        offset = gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        of_key, of_row = _decay_of(
            part_ptr, hi_ptr, lo_ptr, decay_base, first_key + block * BN, offset, row, row_hi, row_lo, n_keys, DECAY
        )
        score = warpgroup_mma_wait(1, deps=[score])
        barrier()
        mbarrier.arrive(bars.index(2 * STAGES + place), count=1)
        here = first_key + block * BN
        weight, shrink, peak, total = _soften(
            score, of_key, of_row, row - here, low - here, offset, peak, total, scale, MASKED, DECAY, LOWS
        )
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        barrier()
        mbarrier.arrive(bars.index(3 * STAGES + before), count=1)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]
        p = gl.convert_layout(weight.to(ring.dtype), WEIGHTS)
    return acc, p, total, peak


@gluon.jit
def _pass(begin, end, base, bars, STAGES: gl.constexpr):
    """Blocks begin ≤ j < end belong to the other warpgroup: leave their places as soon as they are there."""
    for block in range(begin, end):
        place = (base + block) % STAGES
        parity = ((base + block) // STAGES) & 1
        mbarrier.wait(bars.index(place), parity)
        mbarrier.wait(bars.index(STAGES + place), parity)
        # A warp that fell a round behind would wait for a phase that has passed.
        barrier()
        mbarrier.arrive(bars.index(2 * STAGES + place), count=1)
        mbarrier.arrive(bars.index(3 * STAGES + place), count=1)


@gluon.jit
def _compute_tiles(
    q_ptr, rows_ptr, starts_ptr, part_ptr, hi_ptr, lo_ptr, o_ptr, along_ptr, lse_ptr,
    q_tile, d_tile, r_tile, ring, bars, q_bars,
    stride_qb, n_work, n_batch, n_rows, n_keys, span, window, scale, stride_qt: gl.constexpr, stride_qh: gl.constexpr,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, D: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SPLIT: gl.constexpr, ROW_LISTS: gl.constexpr, START_LISTS: gl.constexpr,
    WINDOW: gl.constexpr, DECAY: gl.constexpr, DIRECTIONS: gl.constexpr, Q_COPIED: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """A warpgroup: 64 rows of every tile, up to their own last one; then it lets the other's blocks pass."""
    PACKED_HEADS: gl.constexpr = HEADS // PACK
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    OF_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    COEFFICIENTS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, LANES, 16])
    LOWS: gl.constexpr = WINDOW or START_LISTS > 0
    n_tiles = (n_rows * PACK + 2 * BM - 1) // (2 * BM)
    column = gl.arange(0, D, gl.SliceLayout(0, WIDE))
    base = 0
    for turn in range(_turns(n_work)):
        tile, packed_head, batch, split = _tile_of(turn, n_tiles, n_batch, PACKED_HEADS, SPLIT)
        first_packed = tile * 2 * BM + HALF * BM
        own_place = HALF
        if Q_COPIED:
            own_place = turn % 2 * 2 + HALF
        own = q_tile.index(own_place)
        packed = first_packed + gl.arange(0, BM, OF_ROW)
        if not Q_COPIED:
            # Gather the rows: into registers by rows of 16 bytes a thread, then into shared memory for the products.
            # Slots past the end read the last one: what an empty slot computes is thrown away.
            from_packed = gl.minimum(first_packed, (n_rows - 1) * PACK)
            wide = gl.minimum(gl.arange(0, BM, gl.SliceLayout(1, WIDE)), n_rows * PACK - 1 - from_packed)
            q_base = q_ptr + batch.to(gl.int64) * stride_qb + (from_packed // PACK).to(gl.int64) * stride_qt
            q_base += packed_head * PACK * stride_qh
            q = gl.load(q_base + (wide // PACK * stride_qt + wide % PACK * stride_qh)[:, None] + column[None, :])
            own.store(q)
        row = _positions(rows_ptr, packed, batch, packed_head, n_rows, n_keys, HEADS, KV_HEADS, PACK, ROW_LISTS)
        if not Q_COPIED:
            fence_async_shared()
            barrier()
        lo, n_blocks, begin, open_lo, open_hi, end = _spans_of(
            rows_ptr, starts_ptr, tile, packed_head, batch, split, span, window, n_rows, n_keys,
            HEADS, KV_HEADS, PACK, BN, SPLIT, ROW_LISTS, START_LISTS, WINDOW, WARPS, HALF,
        )  # fmt: skip
        low, row_hi, row_lo, decay_base = row, scale, scale, base
        if LOWS:
            low = _first_keys(
                starts_ptr, row, packed, batch, packed_head, n_rows, window, HEADS, KV_HEADS, PACK, START_LISTS, WINDOW
            )
        if DECAY == 2:
            row_hi = gl.load(hi_ptr + packed_head) * BASE_2
        elif DECAY:
            decay_base = (batch.to(gl.int64) * HEADS + packed_head) * n_keys
            row_hi = gl.load(hi_ptr + decay_base + gl.maximum(row, 0))
            row_lo = gl.load(lo_ptr + decay_base + gl.maximum(row, 0))

        if LOWS:
            _pass(0, begin, base, bars, STAGES)
        if Q_COPIED:
            mbarrier.wait(q_bars.index(own_place), (turn // 2) & 1)
        # The first block, masked whether it needs it or not.
        count = base + begin
        here = lo + begin * BN
        mbarrier.wait(bars.index(count % STAGES), (count // STAGES) & 1)
        nothing = gl.zeros([BM, BN], gl.float32, SCORES)
        keys = ring.index(count % STAGES).permute((1, 0))
        score = warpgroup_mma(own, keys, nothing, use_acc=False, is_async=True)
        offset = gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        of_key, of_row = _decay_of(
            part_ptr, hi_ptr, lo_ptr, decay_base, here, offset, row, row_hi, row_lo, n_keys, DECAY
        )
        score = warpgroup_mma_wait(0, deps=[score])
        barrier()
        mbarrier.arrive(bars.index(2 * STAGES + count % STAGES), count=1)
        peak = gl.full([BM], float("-inf"), gl.float32, OF_ROW)
        total = gl.zeros([BM], gl.float32, OF_ROW)
        weight, _, peak, total = _soften(
            score, of_key, of_row, row - here, low - here, offset, peak, total, scale, True, DECAY, LOWS
        )
        p = gl.convert_layout(weight.to(ring.dtype), WEIGHTS)
        acc = gl.zeros([BM, D], gl.float32, OUT)
        if LOWS:
            acc, p, total, peak = _fold(
                begin + 1, open_lo, base, acc, p, total, peak, row, low, row_hi, row_lo, part_ptr, hi_ptr, lo_ptr,
                decay_base, own, ring, bars, lo, n_keys, scale, BN, STAGES, SCORES, WEIGHTS, True, DECAY, LOWS,
            )  # fmt: skip
        acc, p, total, peak = _fold(
            open_lo, open_hi, base, acc, p, total, peak, row, low, row_hi, row_lo, part_ptr, hi_ptr, lo_ptr,
            decay_base, own, ring, bars, lo, n_keys, scale, BN, STAGES, SCORES, WEIGHTS, False, DECAY, LOWS,
        )  # fmt: skip
        acc, p, total, peak = _fold(
            open_hi, end, base, acc, p, total, peak, row, low, row_hi, row_lo, part_ptr, hi_ptr, lo_ptr,
            decay_base, own, ring, bars, lo, n_keys, scale, BN, STAGES, SCORES, WEIGHTS, True, DECAY, LOWS,
        )  # fmt: skip
        count = base + end - 1
        mbarrier.wait(bars.index(STAGES + count % STAGES), (count // STAGES) & 1)
        acc = warpgroup_mma(p, ring.index(STAGES + count % STAGES), acc, is_async=True)
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        barrier()
        mbarrier.arrive(bars.index(3 * STAGES + count % STAGES), count=1)
        _pass(end, n_blocks, base, bars, STAGES)
        base += n_blocks

        some = (row >= 0) & (total > 0)
        index = packed // PACK
        out_base = (split * n_batch + batch).to(gl.int64) * n_rows
        lse = peak + gl.log2(gl.where(some, total, 1.0))
        lse_base = (split * n_batch + batch).to(gl.int64) * PACKED_HEADS + packed_head
        empty: gl.constexpr = float("-inf") if SPLIT else float("inf")
        gl.store(lse_ptr + lse_base * n_rows * PACK + packed, gl.where(some, lse, empty), mask=index < n_rows)
        gain = gl.convert_layout(1.0 / gl.where(some, total, 1.0), gl.SliceLayout(1, OUT))
        acc = gl.where(gl.convert_layout(some, gl.SliceLayout(1, OUT))[:, None], acc * gain[:, None], 0.0)
        out_column = gl.arange(0, D, gl.SliceLayout(0, OUT))
        inside = gl.convert_layout(index < n_rows, gl.SliceLayout(1, OUT))
        out_head = packed_head * PACK + packed % PACK
        out_row = gl.convert_layout((out_base + index) * HEADS + out_head, gl.SliceLayout(1, OUT))
        if DIRECTIONS > 0:
            # One head a tile: its directions are the same for every row.
            acc = remove_directions(
                acc, r_tile.index(own_place), d_tile.index(own_place), packed_head * DIRECTIONS % APART, along_ptr,
                out_row, inside, OUT, COEFFICIENTS, DIRECTIONS,
            )  # fmt: skip
        if SPLIT:
            gl.store(o_ptr + out_row[:, None] * D + out_column[None, :], acc, mask=inside[:, None])
        else:
            # Back through the place of q, so that rows are stored by 16 bytes a thread.
            own.store(acc.to(ring.dtype))
            barrier()
            wide = gl.arange(0, BM, gl.SliceLayout(1, WIDE))
            to_base = o_ptr + ((out_base + first_packed // PACK) * HEADS + packed_head * PACK) * D
            to = to_base + ((wide // PACK * HEADS + wide % PACK) * D)[:, None] + column[None, :]
            gl.store(to, own.load(WIDE), mask=(first_packed + wide < n_rows * PACK)[:, None])
        # Before the next rows are put into their place.
        if Q_COPIED:
            fence_async_shared()
        barrier()
        if Q_COPIED:
            mbarrier.arrive(q_bars.index(4 + own_place), count=1)


@gluon.jit
def _positions(
    rows_ptr, packed, batch, packed_head, n_rows, n_keys,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, ROW_LISTS: gl.constexpr,
):  # fmt: skip
    """Position of packed rows, int32, -1 where there is none; without a list the last n_rows positions."""
    index = packed // PACK
    inside = index < n_rows
    if ROW_LISTS > 0:
        start = batch.to(gl.int64) * ROW_LISTS * n_rows
        if ROW_LISTS > 1:
            start += packed_head // (HEADS // PACK // KV_HEADS) * n_rows
        # Slots past the end read the last one: a predicated load keeps a register from tile to tile.
        row = gl.load(rows_ptr + start + gl.minimum(index, n_rows - 1)).to(gl.int32)
    else:
        row = n_keys - n_rows + index
    return gl.where(inside, row, -1)


@gluon.jit
def _first_keys(
    starts_ptr, row, packed, batch, packed_head, n_rows, window,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, START_LISTS: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """First key that each packed row reads, by its start and its window; anything in an empty slot."""
    low = row * 0
    if START_LISTS > 0:
        start = batch.to(gl.int64) * START_LISTS * n_rows
        if START_LISTS > 1:
            start += packed_head // (HEADS // PACK // KV_HEADS) * n_rows
        low = gl.load(starts_ptr + start + gl.minimum(packed // PACK, n_rows - 1)).to(gl.int32)
    if WINDOW:
        low = gl.maximum(low, row - window + 1)
    return low


@gluon.jit(do_not_specialize=["n_batch", "n_rows", "n_keys", "n_splits", "span", "window"])
def hopper_kernel(
    q_ptr, q_matrix, k_matrix, v_matrix, d_matrix, r_matrix, rows_ptr, starts_ptr, part_ptr, hi_ptr, lo_ptr,
    o_ptr, along_ptr, lse_ptr,
    stride_qb, n_batch, n_rows, n_keys, n_splits, span, window, scale, stride_qt: gl.constexpr, stride_qh: gl.constexpr,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, D: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SPLIT: gl.constexpr, ROW_LISTS: gl.constexpr, START_LISTS: gl.constexpr,
    WINDOW: gl.constexpr, DECAY: gl.constexpr, DIRECTIONS: gl.constexpr,
):  # fmt: skip
    """o [B, R, H, D] and lse [B, F, P] (base 2, +inf where nothing is visible); partial ones a split with SPLIT.

    Any number of programs does: they share the tiles. `q_matrix` describes q for bulk copies, or is None; then strides
    within q are those of a model: as constants they save registers. With DIRECTIONS, how many, also <o, d_k>
    [B, R, H, K].
    """
    n_work = (n_rows * PACK + 2 * BM - 1) // (2 * BM) * (HEADS // PACK) * n_batch * n_splits
    dtype: gl.constexpr = k_matrix.dtype
    # Keys, then values; their barriers: keys there, values there, keys read, values read.
    ring = gl.allocate_shared_memory(dtype, [2 * STAGES, BN, D], k_matrix.layout)
    bars = gl.allocate_shared_memory(gl.int64, [4 * STAGES, 1], mbarrier.MBarrierLayout())
    Q_COPIED: gl.constexpr = q_matrix is not None
    q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, D], dtype)
    # Of both warpgroups, twice where they are copied ahead; their barriers: rows there, rows read.
    q_tile = gl.allocate_shared_memory(dtype, [4 if Q_COPIED else 2, BM, D], q_layout)
    q_bars = gl.allocate_shared_memory(gl.int64, [8, 1], mbarrier.MBarrierLayout())
    d_tile, r_tile = q_tile, q_tile
    if DIRECTIONS > 0:
        d_tile = gl.allocate_shared_memory(dtype, [4, LANES, D], d_matrix.layout)
        r_tile = gl.allocate_shared_memory(dtype, [4, BM, LANES], r_matrix.layout)
    for place in gl.static_range(2 * STAGES):
        mbarrier.init(bars.index(place), count=1)
        mbarrier.init(bars.index(2 * STAGES + place), count=2)
    for place in gl.static_range(8):
        mbarrier.init(q_bars.index(place), count=1)
    fence_async_shared()
    computing: gl.constexpr = COMPUTING_LOWS if WINDOW or START_LISTS > 0 else COMPUTING
    copying: gl.constexpr = COPYING_LOWS if WINDOW or START_LISTS > 0 else COPYING
    # Constants stay constants only where they are written into the call.
    gl.warp_specialize(
        [
            (_compute_tiles, (
                q_ptr, rows_ptr, starts_ptr, part_ptr, hi_ptr, lo_ptr, o_ptr, along_ptr, lse_ptr,
                q_tile, d_tile, r_tile, ring, bars, q_bars, stride_qb, n_work, n_batch, n_rows, n_keys, span,
                window, scale, stride_qt, stride_qh, HEADS, KV_HEADS, PACK, D, BN, STAGES, SPLIT, ROW_LISTS,
                START_LISTS, WINDOW, DECAY, DIRECTIONS, Q_COPIED, 0,
            )),
            (_compute_tiles, (
                q_ptr, rows_ptr, starts_ptr, part_ptr, hi_ptr, lo_ptr, o_ptr, along_ptr, lse_ptr,
                q_tile, d_tile, r_tile, ring, bars, q_bars, stride_qb, n_work, n_batch, n_rows, n_keys, span,
                window, scale, stride_qt, stride_qh, HEADS, KV_HEADS, PACK, D, BN, STAGES, SPLIT, ROW_LISTS,
                START_LISTS, WINDOW, DECAY, DIRECTIONS, Q_COPIED, 1,
            )),
            (_copy_blocks, (
                q_matrix, k_matrix, v_matrix, d_matrix, r_matrix, rows_ptr, starts_ptr, q_tile, d_tile, r_tile, ring,
                bars, q_bars, n_work, n_batch, n_rows, n_keys, span, window, HEADS, KV_HEADS, PACK, D, BN, STAGES,
                SPLIT, ROW_LISTS, START_LISTS, WINDOW, DIRECTIONS,
            )),
        ],
        [WARPS, 1],
        [computing, copying],
    )  # fmt: skip


def matrices(
    q: Tensor | None, k: Tensor, v: Tensor, directions: Tensor | None, amounts: Tensor | None, tile: Tile
) -> dict[str, Any]:
    """Rows (None: by pointers), keys, values, directions and their amounts as the kernel copies them, and the sizes of
    the ring."""
    described = {"k_matrix": _matrix(k, tile.keys), "v_matrix": _matrix(v, tile.keys)}
    described |= {"q_matrix": None if q is None else _matrix(q, BM.value), "d_matrix": None, "r_matrix": None}
    if directions is not None and amounts is not None:
        dtype, lanes = k.dtype, LANES.value
        described["d_matrix"] = _matrix(directions.to(dtype).flatten(0, 1)[None, :, None], lanes)
        described["r_matrix"] = _matrix(amounts.to(dtype).flatten(2)[:, :, None], BM.value, lanes)
    return described | {"BN": tile.keys, "STAGES": tile.stages}


def _matrix(x: Tensor, height: int, columns: int = 0) -> Any:
    """[B, S, G, D] as the matrix [B·S, G·D], copied in blocks of `height` rows of one head, or of `columns` columns."""
    n_batch, n_keys, n_groups, width = x.shape
    shape, strides = [n_batch * n_keys, n_groups * width], [x.stride(1), 1]
    block = [height, columns or width]
    return TensorDescriptor(x, shape, strides, block, _layout(x.dtype, *block))


@lru_cache
def _layout(dtype: torch.dtype, height: int, width: int) -> Any:
    element = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for([height, width], element)
