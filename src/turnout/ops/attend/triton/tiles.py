"""What the kernels of a tile share: positions of its rows, spans of its keys, masks, and a search in a sorted list.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim (BD padded to a power of two),
BM packed rows and BN keys of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

# log2(e): from natural logarithms to those of base 2.
BASE_2 = tl.constexpr(1.4426950408889634)


@triton.jit
def list_start(batch, kv_head, n_rows, LISTS: tl.constexpr):
    """Where the list of a kv head starts in [B, LISTS, R]; LISTS is 1 (one list for all) or G."""
    start = batch.to(tl.int64) * LISTS * n_rows
    if LISTS > 1:
        start += kv_head * n_rows
    return start


@triton.jit
def load_rows(rows_ptr, batch, kv_head, index, inside, n_rows, n_keys, ROW_LISTS: tl.constexpr):
    """Position of every row of a tile, int32 [BM], -1 where there is none; without a list the last n_rows positions."""
    if ROW_LISTS > 0:
        base = rows_ptr + list_start(batch, kv_head, n_rows, ROW_LISTS)
        row = tl.load(base + index, mask=inside, other=-1).to(tl.int32)
    else:
        row = tl.where(inside, n_keys - n_rows + index, -1)
    return row


@triton.jit
def load_starts(starts_ptr, batch, kv_head, index, valid, n_rows, START_LISTS: tl.constexpr):
    """First key that every row may read, int32 [BM], 0 where the row is empty; None without the option."""
    low = None
    if START_LISTS > 0:
        base = starts_ptr + list_start(batch, kv_head, n_rows, START_LISTS)
        low = tl.load(base + index, mask=valid, other=0).to(tl.int32)
    return low


@triton.jit
def packed_offsets(batch64, index, head, stride_b, stride_t, stride_h):
    """Element offset of each packed row in [B, R, H, D], int64 [BM]."""
    return batch64 * stride_b + index.to(tl.int64) * stride_t + head * stride_h


@triton.jit
def key_tile(
    base, stride, kv_row, kv_column, first_key, n_keys,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """k or v of BN keys, [BN, BD]; no mask on full blocks of unpadded width.

    With TMA `base` describes the matrix [B·S, G·D], in which the head starts at (kv_row, kv_column); keys past the end
    are then those of the next sequence, or 0.
    """
    if TMA:
        tile = base.load([kv_row + first_key, kv_column])
    else:
        offset_n, offset_d = tl.arange(0, BN), tl.arange(0, BD)
        # The block's start in int64, the offsets within it in 32 bits.
        pointer = base + tl.cast(first_key, tl.int64) * stride + (offset_n[:, None] * stride + offset_d[None, :])
        if MASKED:
            tile = tl.load(pointer, mask=(first_key + offset_n < n_keys)[:, None] & (offset_d < D)[None, :], other=0.0)
        elif D != BD:
            tile = tl.load(pointer, mask=(offset_d < D)[None, :], other=0.0)
        else:
            tile = tl.load(pointer)
    return tile


@triton.jit
def visible(row, key, low, window, sinks, WINDOW: tl.constexpr, SINKS: tl.constexpr, STARTS: tl.constexpr):
    """key ≤ row, in the window or the sinks, not before the row's first key; arguments broadcast."""
    seen = key <= row
    if STARTS:
        seen = seen & (key >= low)
    if WINDOW:
        near = key > row - window
        if SINKS:
            if STARTS:
                near = near | (key < low + sinks)
            else:
                near = near | (key < sinks)
        seen = seen & near
    return seen


@triton.jit
def fold_scores(score, row_hi, row_lo, hi_base, lo_base, key, first_key, n_keys, scale, DECAY: tl.constexpr):
    """Scores of rows × keys: base 2 and with the decay c_t − c_s if there is one, else unscaled products.

    c is a sum of two float32, so that the difference of two large sums carries only its own rounding. It is split at
    the tile's first key f into (c_t − c_f) + (c_f − c_s): one number a row and one a key, and one sum a pair.
    """
    if DECAY:
        of_row = row_decay(row_hi, row_lo, hi_base, lo_base, first_key, DECAY)
        if DECAY == 1:
            first_hi, first_lo = tl.load(hi_base + first_key), tl.load(lo_base + first_key)
            key_hi = tl.load(hi_base + key, mask=key < n_keys, other=0.0)
            key_lo = tl.load(lo_base + key, mask=key < n_keys, other=0.0)
            of_key = (first_hi - key_hi) + (first_lo - key_lo)
        else:
            of_key = hi_base * (first_key - key).to(tl.float32)
        score = score * scale + (of_row[:, None] + of_key[None, :])
    return score


@triton.jit
def row_decay(row_hi, row_lo, hi_base, lo_base, first_key, DECAY: tl.constexpr):
    """c_t − c_f of rows; with rates `hi_base` is that of the head in base 2 and `row_hi` are the positions."""
    if DECAY == 1:
        of_row = (row_hi - tl.load(hi_base + first_key)) + (row_lo - tl.load(lo_base + first_key))
    else:
        of_row = hi_base * (row_hi - first_key).to(tl.float32)
    return of_row


@triton.jit
def key_spans(
    row, low, valid, last, window, sinks, BN: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    STARTS: tl.constexpr,
):  # fmt: skip
    """Spans of keys for a tile: sinks, then lo ≤ full_lo ≤ full_hi ≤ hi; keys in [full_lo, full_hi) need no mask.

    All but the ends `sink_hi` and `hi` are multiples of BN. A tile without rows has hi = 0.
    """
    first = tl.min(tl.where(valid, row, 2147483647), 0)
    first = tl.minimum(first, last)
    lo, full_lo = first * 0, first * 0
    sink_lo, sink_hi = first * 0, first * 0
    if STARTS:
        lo = tl.min(tl.where(valid, low, 2147483647), 0)
        lo = tl.minimum(lo, tl.max(low, 0))
        full_lo = tl.max(low, 0)
        sink_lo = lo // BN * BN
    if SINKS:
        sink_hi = full_lo + sinks
    if WINDOW:
        lo = tl.maximum(lo, first - window + 1)
        full_lo = tl.maximum(full_lo, last - window + 1)
    lo = lo // BN * BN
    sink_hi = tl.minimum(sink_hi, lo)
    hi = last + 1
    full_hi = tl.maximum((first + 1) // BN * BN, lo)
    full_lo = tl.minimum(tl.maximum((full_lo + BN - 1) // BN * BN, lo), full_hi)
    return sink_lo, sink_hi, lo, full_lo, full_hi, hi


@triton.jit
def count_below(base, n, bound, FAN: tl.constexpr):
    """How many entries of a list x[0..n) satisfy 0 ≤ x < bound; they come first. Two loads where n ≤ FAN²."""
    step = tl.maximum((n + FAN - 1) // FAN, 1)
    slot = tl.arange(0, FAN)
    sample = tl.load(base + slot * step, mask=slot * step < n, other=-1)
    below = tl.sum(((sample >= 0) & (sample < bound)).to(tl.int32), 0)
    begin = tl.maximum(below - 1, 0) * step
    count = begin
    for offset in range(0, step, FAN):
        place = offset + slot
        x = tl.load(base + begin + place, mask=(place < step) & (begin + place < n), other=-1)
        count += tl.sum(((x >= 0) & (x < bound)).to(tl.int32), 0)
    return count
