"""The forward kernel for compute capability 9.0 in Gluon: who copies and who computes are different warps.

A program holds two tiles of 64 packed rows of one packed head. One warp copies blocks of keys and values into a ring
of shared memory; a warpgroup a tile multiplies them, each up to its own last row. A warpgroup issues the product of
the next block's scores and that of this block's values together, and computes the softmax while the second one runs
(Shah et al. 2024, FlashAttention-3, sec. 3.2). Plain calls only: no window, decay, packed sequences or key lists.

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
from turnout.ops.attend.triton.job import Job

# One warpgroup multiplies 64 rows at a time.
BM = gl.constexpr(64)
WARPS = gl.constexpr(4)
# Registers a thread: two warpgroups that compute, one warp that copies.
COMPUTING, COPYING = gl.constexpr(240), gl.constexpr(24)
# Triton 3.6 has the barrier under its old name.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def _copy_blocks(k_matrix, v_matrix, k_ring, v_ring, k_full, v_full, k_free, v_free, kv_row, kv_column, n_blocks,
                 BN: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """The copying warp: keys, then values of every block, as soon as both warpgroups have left their place."""
    for block in range(n_blocks):
        place = block % STAGES
        # The first round waits for nobody: a fresh barrier counts as one phase behind.
        parity = ((block // STAGES) & 1) ^ 1
        at = kv_row + block * BN
        mbarrier.wait(k_free.index(place), parity)
        mbarrier.expect(k_full.index(place), k_matrix.block_type.nbytes)
        tma.async_copy_global_to_shared(k_matrix, [at, kv_column], k_full.index(place), k_ring.index(place))
        mbarrier.wait(v_free.index(place), parity)
        mbarrier.expect(v_full.index(place), v_matrix.block_type.nbytes)
        tma.async_copy_global_to_shared(v_matrix, [at, kv_column], v_full.index(place), v_ring.index(place))


@gluon.jit
def _soften(score, row, key, peak, total, scale, MASKED: gl.constexpr):
    """Weights 2^(s − m') of one block, the factor 2^(m − m') of what was summed before, m' and the new sum."""
    if MASKED:
        score = gl.where(key[None, :] <= row[:, None], score, float("-inf"))
    new_peak = gl.maximum(peak, gl.max(score, 1) * scale)
    # A row that has seen nothing yet has peak −inf; 2^(−inf − 0) = 0 keeps it empty without a NaN.
    base = new_peak
    if MASKED:
        base = gl.where(new_peak == float("-inf"), 0.0, new_peak)
    weight = gl.exp2(score * scale - base[:, None])
    shrink = gl.exp2(peak - base)
    return weight, shrink, new_peak, total * shrink + gl.sum(weight, 1)


@gluon.jit
def _fold(
    begin, end, acc, p, total, peak, row, q, k_ring, v_ring, k_full, v_full, k_free, v_free, first_key, scale,
    BN: gl.constexpr, STAGES: gl.constexpr, SCORES: gl.constexpr, WEIGHTS: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Blocks begin ≤ j < end: scores of block j while the weights `p` of block j − 1 meet their values."""
    for block in range(begin, end):
        place = block % STAGES
        before = (block - 1) % STAGES
        mbarrier.wait(k_full.index(place), (block // STAGES) & 1)
        nothing = gl.zeros([BM, BN], gl.float32, SCORES)
        score = warpgroup_mma(q, k_ring.index(place).permute((1, 0)), nothing, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), ((block - 1) // STAGES) & 1)
        acc = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
        score = warpgroup_mma_wait(1, deps=[score])
        barrier()
        mbarrier.arrive(k_free.index(place), count=1)
        key = first_key + block * BN + gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        weight, shrink, peak, total = _soften(score, row, key, peak, total, scale, MASKED)
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        barrier()
        mbarrier.arrive(v_free.index(before), count=1)
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]
        p = gl.convert_layout(weight.to(k_ring.dtype), WEIGHTS)
    return acc, p, total, peak


@gluon.jit
def _compute_tile(
    q_ptr, rows_ptr, o_ptr, lse_ptr, q_tile, k_ring, v_ring, k_full, v_full, k_free, v_free,
    stride_qb, stride_qt, stride_qh, batch, packed_head, first_packed, n_rows, n_keys, lo, stop, n_blocks, out_base,
    lse_base, scale,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, D: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SPLIT: gl.constexpr, ROW_LISTS: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """A warpgroup: its 64 rows against keys lo ≤ s < min(stop, last row + 1); then it lets the other's blocks pass."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    OF_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    packed = first_packed + HALF * BM + gl.arange(0, BM, OF_ROW)
    row = _positions(rows_ptr, packed, batch, packed_head, n_rows, n_keys, HEADS, KV_HEADS, PACK, ROW_LISTS)
    last = gl.max(row, 0)
    first = gl.minimum(gl.min(gl.where(row >= 0, row, 2147483647), 0), last)
    hi = gl.minimum(stop, last + 1)
    # At least one block, so that an empty tile takes the same way: every key of it is masked.
    mine = gl.maximum((hi - lo + BN - 1) // BN, 1)
    full = gl.minimum(gl.maximum((gl.minimum(first + 1, stop) - lo) // BN, 1), mine)

    # Gather the rows: into registers by rows of 16 bytes a thread, then into shared memory for the products.
    wide = first_packed + HALF * BM + gl.arange(0, BM, gl.SliceLayout(1, WIDE))
    wide_index = wide // PACK
    wide_head = packed_head * PACK + wide % PACK
    column = gl.arange(0, D, gl.SliceLayout(0, WIDE))
    q_offset = batch.to(gl.int64) * stride_qb + wide_index.to(gl.int64) * stride_qt + wide_head * stride_qh
    wide_row = _positions(rows_ptr, wide, batch, packed_head, n_rows, n_keys, HEADS, KV_HEADS, PACK, ROW_LISTS)
    q = gl.load(q_ptr + q_offset[:, None] + column[None, :], mask=(wide_row >= 0)[:, None], other=0.0)
    own = q_tile.index(HALF)
    own.store(q)
    fence_async_shared()
    barrier()

    # The first block, masked whether it needs it or not.
    mbarrier.wait(k_full.index(0), 0)
    nothing = gl.zeros([BM, BN], gl.float32, SCORES)
    score = warpgroup_mma(own, k_ring.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
    score = warpgroup_mma_wait(0, deps=[score])
    barrier()
    mbarrier.arrive(k_free.index(0), count=1)
    peak = gl.full([BM], float("-inf"), gl.float32, OF_ROW)
    total = gl.zeros([BM], gl.float32, OF_ROW)
    key = lo + gl.arange(0, BN, gl.SliceLayout(0, SCORES))
    weight, _, peak, total = _soften(score, row, key, peak, total, scale, True)
    p = gl.convert_layout(weight.to(k_ring.dtype), WEIGHTS)
    acc = gl.zeros([BM, D], gl.float32, OUT)
    acc, p, total, peak = _fold(
        1, full, acc, p, total, peak, row, own, k_ring, v_ring, k_full, v_full, k_free, v_free, lo, scale,
        BN, STAGES, SCORES, WEIGHTS, False,
    )  # fmt: skip
    acc, p, total, peak = _fold(
        full, mine, acc, p, total, peak, row, own, k_ring, v_ring, k_full, v_full, k_free, v_free, lo, scale,
        BN, STAGES, SCORES, WEIGHTS, True,
    )  # fmt: skip
    before = (mine - 1) % STAGES
    mbarrier.wait(v_full.index(before), ((mine - 1) // STAGES) & 1)
    acc = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    barrier()
    mbarrier.arrive(v_free.index(before), count=1)
    for block in range(mine, n_blocks):
        place = block % STAGES
        parity = (block // STAGES) & 1
        mbarrier.wait(k_full.index(place), parity)
        mbarrier.arrive(k_free.index(place), count=1)
        mbarrier.wait(v_full.index(place), parity)
        mbarrier.arrive(v_free.index(place), count=1)

    some = (row >= 0) & (total > 0)
    index = packed // PACK
    if SPLIT:
        lse = gl.where(some, peak + gl.log2(gl.where(some, total, 1.0)), float("-inf"))
    else:
        lse = gl.where(some, peak + gl.log2(gl.where(some, total, 1.0)), float("inf"))
    gl.store(lse_ptr + lse_base + packed, lse, mask=index < n_rows)
    gain = gl.where(some, 1.0 / gl.where(some, total, 1.0), 0.0)
    acc = acc * gl.convert_layout(gain, gl.SliceLayout(1, OUT))[:, None]
    if SPLIT:
        head = packed_head * PACK + packed % PACK
        out_row = gl.convert_layout((out_base + index) * HEADS + head, gl.SliceLayout(1, OUT))
        inside = gl.convert_layout(index < n_rows, gl.SliceLayout(1, OUT))
        out_column = gl.arange(0, D, gl.SliceLayout(0, OUT))
        gl.store(o_ptr + out_row[:, None] * D + out_column[None, :], acc, mask=inside[:, None])
    else:
        # Back through the place of q, so that rows are stored by 16 bytes a thread.
        own.store(acc.to(k_ring.dtype))
        barrier()
        wide_out = (out_base + wide_index) * HEADS + wide_head
        gl.store(o_ptr + wide_out[:, None] * D + column[None, :], own.load(WIDE), mask=(wide_index < n_rows)[:, None])


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
        row = gl.load(rows_ptr + start + index, mask=inside, other=-1).to(gl.int32)
    else:
        row = gl.where(inside, n_keys - n_rows + index, -1)
    return row


@gluon.jit(do_not_specialize=["n_batch", "n_rows", "n_keys", "n_splits", "span"])
def hopper_kernel(
    q_ptr, k_matrix, v_matrix, rows_ptr, o_ptr, lse_ptr, stride_qb, stride_qt, stride_qh,
    n_batch, n_rows, n_keys, n_splits, span, scale,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, PACK: gl.constexpr, D: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, SPLIT: gl.constexpr, ROW_LISTS: gl.constexpr,
):  # fmt: skip
    """o [B, R, H, D] and lse [B, F, P] (base 2, +inf where nothing is visible); partial ones a split with SPLIT."""
    PACKED_HEADS: gl.constexpr = HEADS // PACK
    pid = gl.program_id(0)
    n_tiles = (n_rows * PACK + 2 * BM - 1) // (2 * BM)
    split = 0
    if SPLIT:
        tile = n_tiles - 1 - pid % n_tiles
        pid = pid // n_tiles
        split = pid // PACKED_HEADS // n_batch
    else:
        tile = n_tiles - 1 - pid // PACKED_HEADS // n_batch
    packed_head = pid % PACKED_HEADS
    batch = pid // PACKED_HEADS % n_batch
    first_packed = tile * 2 * BM
    FLAT: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    packed = first_packed + gl.arange(0, 2 * BM, FLAT)
    row = _positions(rows_ptr, packed, batch, packed_head, n_rows, n_keys, HEADS, KV_HEADS, PACK, ROW_LISTS)
    last = gl.max(row, 0)
    lo = split * span
    stop = n_keys
    if SPLIT:
        stop = gl.minimum(lo + span, n_keys)
    n_blocks = gl.maximum((gl.minimum(stop, last + 1) - lo + BN - 1) // BN, 1)
    lse_base = ((split * n_batch + batch).to(gl.int64) * PACKED_HEADS + packed_head) * n_rows * PACK
    out_base = (split * n_batch + batch).to(gl.int64) * n_rows
    kv_row = batch * n_keys + lo
    kv_column = packed_head // (PACKED_HEADS // KV_HEADS) * D

    dtype: gl.constexpr = k_matrix.dtype
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, BN, D], k_matrix.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, BN, D], v_matrix.layout)
    q_tile = gl.allocate_shared_memory(dtype, [2, BM, D], gl.NVMMASharedLayout.get_default_for([BM, D], dtype))
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(STAGES):
        mbarrier.init(k_full.index(place), count=1)
        mbarrier.init(v_full.index(place), count=1)
        mbarrier.init(k_free.index(place), count=2)
        mbarrier.init(v_free.index(place), count=2)
    fence_async_shared()
    # Constants stay constants only where they are written into the call.
    gl.warp_specialize(
        [
            (_compute_tile, (
                q_ptr, rows_ptr, o_ptr, lse_ptr, q_tile, k_ring, v_ring, k_full, v_full, k_free, v_free,
                stride_qb, stride_qt, stride_qh, batch, packed_head, first_packed, n_rows, n_keys, lo, stop, n_blocks,
                out_base, lse_base, scale, HEADS, KV_HEADS, PACK, D, BN, STAGES, SPLIT, ROW_LISTS, 0,
            )),
            (_compute_tile, (
                q_ptr, rows_ptr, o_ptr, lse_ptr, q_tile, k_ring, v_ring, k_full, v_full, k_free, v_free,
                stride_qb, stride_qt, stride_qh, batch, packed_head, first_packed, n_rows, n_keys, lo, stop, n_blocks,
                out_base, lse_base, scale, HEADS, KV_HEADS, PACK, D, BN, STAGES, SPLIT, ROW_LISTS, 1,
            )),
            (_copy_blocks, (
                k_matrix, v_matrix, k_ring, v_ring, k_full, v_full, k_free, v_free, kv_row, kv_column, n_blocks,
                BN, STAGES,
            )),
        ],
        [WARPS, 1],
        [COMPUTING, COPYING],
    )  # fmt: skip


def arguments_of(job: Job, tile: Tile) -> dict[str, Any]:
    """What `hopper_kernel` reads of a call, without its outputs and splits."""
    shared = job.arguments()
    names = ("q_ptr", "rows_ptr", "stride_qb", "stride_qt", "stride_qh", "n_batch", "n_rows", "n_keys", "HEADS",
             "KV_HEADS", "PACK", "D", "ROW_LISTS")  # fmt: skip
    return {name: shared[name] for name in names} | {
        "k_matrix": _matrix(job.k, tile.keys), "v_matrix": _matrix(job.v, tile.keys), "BN": tile.keys,
        "STAGES": tile.stages,
    }  # fmt: skip


def _matrix(x: Tensor, height: int) -> Any:
    """[B, S, G, D] as the matrix [B·S, G·D], copied in blocks of `height` rows of one head."""
    n_batch, n_keys, n_groups, width = x.shape
    shape, strides = [n_batch * n_keys, n_groups * width], [x.stride(1), 1]
    return TensorDescriptor(x, shape, strides, [height, width], _layout(x.dtype, height, width))


@lru_cache
def _layout(dtype: torch.dtype, height: int, width: int) -> Any:
    element = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for([height, width], element)
