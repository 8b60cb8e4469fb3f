"""Decode kernels: one new token a sequence, split over keys so that the tokens that attend share the whole GPU.

Three launches with fixed grids, nothing read on the host, so a CUDA graph replays any lengths and any routes:

    plan    lengths of the (sequence, kv head) items that attend -> prefix sum of their key blocks
    split   P persistent programs cut the line of all key blocks into P equal pieces; a piece of item i computed by
            program p writes its partial result to slot p + i, which no other piece can have (both only grow)
    merge   each item's slots are neighbours: their average by log-sum-exp, in a fixed order, so repeats are equal
            bit for bit; then the directional epilogue; a sequence that stays local gets zeros

Axes: B sequences, S keys, H query heads, G kv heads, D head dim, N pages, P programs, M heads of a kv head.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Items of one step of the plan's loop, and slots that one step of the merge reads.
PLAN_BLOCK = 1024
MERGE_BLOCK = 32
# Registers a thread may have. Left alone, ptxas aims for fewer and spills a few words.
REGISTERS = 255


class Config(NamedTuple):
    """Keys of one block, warps and pipeline stages of the split kernel; programs per multiprocessor."""

    block: int
    warps: int
    stages: int
    per_sm: int


# By (bytes of an element, head dim rounded up to a power of two). Keys and values of all stages of one program stay
# below half of the 163 KiB of shared memory that an sm_80 block may have, so that two programs share a multiprocessor.
CONFIGS = {
    (2, 16): Config(64, 4, 3, 4),
    (2, 32): Config(64, 4, 3, 4),
    (2, 64): Config(64, 4, 3, 2),
    (2, 128): Config(32, 4, 4, 2),
    (2, 256): Config(32, 4, 2, 2),
    (4, 16): Config(32, 4, 3, 2),
    (4, 32): Config(32, 4, 3, 2),
    (4, 64): Config(32, 4, 3, 2),
    (4, 128): Config(16, 4, 3, 2),
    (4, 256): Config(16, 8, 2, 1),
}


@triton.jit
def _extent(row, WINDOW: tl.constexpr, SINKS: tl.constexpr, BLOCK: tl.constexpr):
    """First key of the row's window, its sinks before that, and their blocks."""
    start = row * 0
    n_sinks = row * 0
    n_sink_blocks = row * 0
    if WINDOW > 0:
        start = tl.maximum(row - WINDOW + 1, 0)
    if SINKS > 0:
        n_sinks = tl.minimum(start, SINKS)
        n_sink_blocks = (n_sinks + BLOCK - 1) // BLOCK
    return start, n_sinks, n_sink_blocks


@triton.jit
def _n_blocks(row, room, WINDOW: tl.constexpr, SINKS: tl.constexpr, BLOCK: tl.constexpr):
    """Key blocks that a row reads: those of its sinks, then those of its window; 0 outside the sequence."""
    start, _, n_sink_blocks = _extent(row, WINDOW, SINKS, BLOCK)
    return tl.where((row >= 0) & (row < room), row // BLOCK - start // BLOCK + 1 + n_sink_blocks, 0)


@triton.jit(do_not_specialize=["n_items", "room"])
def plan_kernel(
    rows, cum, n_items, room, n_groups, n_lists,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """cum[i] = key blocks of all items before item i = sequence · G + kv head; cum[n_items] = all of them."""
    total = 0
    tl.store(cum, total)
    for begin in range(0, n_items, CHUNK):
        item = begin + tl.arange(0, CHUNK)
        inside = item < n_items
        source = (item // n_groups) * n_lists + (item % n_groups) % n_lists
        row = tl.load(rows + source, mask=inside, other=-1).to(tl.int32)
        blocks = tl.where(inside, _n_blocks(row, room, WINDOW, SINKS, BLOCK), 0)
        tl.store(cum + 1 + item, total + tl.cumsum(blocks, 0), mask=inside)
        total += tl.sum(blocks, 0)


@triton.jit
def _item_of(cum, block, n_items, CHUNK: tl.constexpr):
    """The item that a key block belongs to: how many items end at or before it."""
    found = 0
    for begin in range(0, n_items, CHUNK):
        item = begin + tl.arange(0, CHUNK)
        end = tl.load(cum + 1 + item, mask=item < n_items, other=2147483647)
        found += tl.sum((end <= block).to(tl.int32), 0)
    return found


@triton.jit
def _owner(block, total, n_programs):
    """The program whose share holds a block: the first `more` shares have one block more than the others."""
    share = total // n_programs
    more = total % n_programs
    longer = more * (share + 1)
    return tl.where(block < longer, block // (share + 1), more + (block - longer) // share)


@triton.jit
def _keys_of(j, row, start, n_sinks, n_sink_blocks, WINDOW: tl.constexpr, SINKS: tl.constexpr, BLOCK: tl.constexpr):
    """Block, positions and visibility of the j-th block that a row reads.

    Blocks start at multiples of BLOCK, so that one never crosses a page that holds whole blocks.
    """
    near = tl.arange(0, BLOCK)
    if SINKS > 0:
        in_sinks = j < n_sink_blocks
        block = tl.where(in_sinks, j, start // BLOCK + j - n_sink_blocks)
        key = block * BLOCK + near
        seen = (key <= tl.where(in_sinks, n_sinks - 1, row)) & (key >= tl.where(in_sinks, 0, start))
    elif WINDOW > 0:
        block = start // BLOCK + j
        key = block * BLOCK + near
        seen = (key <= row) & (key >= start)
    else:
        block = j
        key = block * BLOCK + near
        seen = key <= row
    return block, key, seen


@triton.jit
def _page_of(table_at, block, key, seen, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """The page of every key of a block, from the table."""
    if PAGE % BLOCK == 0:
        page = tl.load(table_at + block // (PAGE // BLOCK)) + tl.zeros([BLOCK], tl.int32)
    else:
        page = tl.load(table_at + key // PAGE, mask=seen, other=0)
    return page


@triton.jit(do_not_specialize=["n_items", "room", "n_pages"])
def split_kernel(
    q, k, v, rows, table, decay, cum, part, lse,
    n_items, room, n_groups, n_lists, n_pages, scale,
    sq_b, sq_h, sk_b, sk_s, sk_g, sv_b, sv_s, sv_g, st_b, sd_b, sd_s,
    SIZE: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, PAGE: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Online softmax over this program's share of all key blocks; one partial result for each item that it touches."""
    program = tl.program_id(0)
    total = tl.load(cum + n_items)
    # Never more programs than blocks: then every share has a block and an item's slots have no gap.
    n_programs = tl.minimum(total, tl.num_programs(0))
    if program < n_programs:
        share = total // n_programs
        more = total % n_programs
        at = program * share + tl.minimum(program, more)
        stop = at + share + (program < more).to(tl.int32)
        head = tl.arange(0, M)
        dim = tl.arange(0, BD)
        mine = (head < SIZE)[:, None] & (dim < DIM)[None, :]
        while at < stop:
            item = _item_of(cum, at, n_items, CHUNK)
            first = tl.load(cum + item)
            end = tl.minimum(tl.load(cum + item + 1), stop)
            sequence = (item // n_groups).to(tl.int64)
            group = item % n_groups
            row = tl.load(rows + sequence * n_lists + group % n_lists).to(tl.int32)
            start, n_sinks, n_sink_blocks = _extent(row, WINDOW, SINKS, BLOCK)
            q_at = q + sequence * sq_b + (group * SIZE + head)[:, None] * sq_h + dim[None, :]
            query = tl.load(q_at, mask=mine, other=0.0)
            k_at = k + group.to(tl.int64) * sk_g + (0 if PAGE > 0 else sequence * sk_b)
            v_at = v + group.to(tl.int64) * sv_g + (0 if PAGE > 0 else sequence * sv_b)
            if DECAY:
                decay_at = decay + sequence * sd_b + group * SIZE + head
                decay_row = tl.load(decay_at + row.to(tl.int64) * sd_s, mask=head < SIZE, other=0.0)
            high = tl.full([M], -float("inf"), tl.float32)
            norm = tl.zeros([M], tl.float32)
            acc = tl.zeros([M, BD], tl.float32)
            for j in range(at - first, end - first):
                block, key, seen = _keys_of(j, row, start, n_sinks, n_sink_blocks, WINDOW, SINKS, BLOCK)
                place = key.to(tl.int64)
                k_key = place * sk_s
                v_key = place * sv_s
                if PAGE > 0:
                    page = _page_of(table + sequence * st_b, block, key, seen, PAGE, BLOCK)
                    mapped = (page >= 0) & (page < n_pages)
                    page = tl.where(mapped, page, 0).to(tl.int64)
                    k_key = page * sk_b + place % PAGE * sk_s
                    v_key = page * sv_b + place % PAGE * sv_s
                real = seen[None, :] if BD == DIM else seen[None, :] & (dim < DIM)[:, None]
                kt = tl.load(k_at + k_key[None, :] + dim[:, None], mask=real, other=0.0)
                real = seen[:, None] if BD == DIM else seen[:, None] & (dim < DIM)[None, :]
                value = tl.load(v_at + v_key[:, None] + dim[None, :], mask=real, other=0.0)
                # Scores in powers of two: exp2 is one instruction.
                score = tl.dot(query, kt, input_precision="ieee") * (scale * 1.4426950408889634)
                if DECAY:
                    both = (head < SIZE)[:, None] & seen[None, :]
                    decay_key = tl.load(decay_at[:, None] + place[None, :] * sd_s, mask=both, other=0.0)
                    score += (decay_row[:, None] - decay_key).to(tl.float32) * 1.4426950408889634
                if PAGE > 0:
                    # A page that the table does not map would be silent garbage.
                    score = tl.where(mapped[None, :], score, float("nan"))
                score = tl.where(seen[None, :], score, -float("inf"))
                higher = tl.maximum(high, tl.max(score, 1))
                weight = tl.exp2(score - higher[:, None])
                fade = tl.exp2(high - higher)
                norm = norm * fade + tl.sum(weight, 1)
                acc = acc * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
                high = higher
            slot = (program + item).to(tl.int64)
            tl.store(lse + slot * SIZE + head, high + tl.log2(norm), mask=head < SIZE)
            part_at = part + (slot * SIZE + head[:, None]) * DIM + dim[None, :]
            tl.store(part_at, acc / norm[:, None], mask=mine)
            at = end


@triton.jit(do_not_specialize=["n_items", "room", "n_programs", "n_directions"])
def merge_kernel(
    rows, cum, part, lse, directions, suppress, out,
    n_items, room, n_groups, n_lists, n_programs, n_directions, so_b, so_h,
    SIZE: tl.constexpr, DIM: tl.constexpr, BD: tl.constexpr, DIRECTIONS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """o = Σ_s 2^(lse_s) part_s / Σ_s 2^(lse_s) over the item's slots; 0 for a local token, NaN for a row outside."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    group = head // SIZE
    item = sequence * n_groups + group
    dim = tl.arange(0, BD)
    row = tl.load(rows + sequence * n_lists + group % n_lists)
    result = tl.zeros([BD], tl.float32)
    first = tl.load(cum + item)
    after = tl.load(cum + item + 1)
    if after > first:
        total = tl.load(cum + n_items)
        used = tl.minimum(total, n_programs)
        low = _owner(first, total, used) + item
        high = _owner(after - 1, total, used) + item
        best = -float("inf")
        norm = 0.0
        for begin in range(low, high + 1, SLOTS):
            slot = (begin + tl.arange(0, SLOTS)).to(tl.int64)
            exists = slot <= high
            level = tl.load(lse + slot * SIZE + head % SIZE, mask=exists, other=-float("inf"))
            at = part + (slot[:, None] * SIZE + head % SIZE) * DIM + dim[None, :]
            piece = tl.load(at, mask=exists[:, None] & (dim < DIM)[None, :], other=0.0)
            better = tl.maximum(best, tl.max(level, 0))
            weight = tl.exp2(level - better)
            fade = tl.exp2(best - better)
            result = result * fade + tl.sum(weight[:, None] * piece, 0)
            norm = norm * fade + tl.sum(weight, 0)
            best = better
        result = result / norm
        if DIRECTIONS > 0:
            which = tl.arange(0, DIRECTIONS)
            real = which < n_directions
            d_at = directions + (head * n_directions + which[:, None]) * DIM + dim[None, :]
            d = tl.load(d_at, mask=real[:, None] & (dim < DIM)[None, :], other=0.0).to(tl.float32)
            r_at = suppress + (sequence * tl.num_programs(0) + head) * n_directions + which
            r = tl.load(r_at, mask=real, other=0.0).to(tl.float32)
            along = tl.sum(d * result[None, :], 1)
            result -= tl.sum((r * along)[:, None] * d, 0)
    if row >= room:
        result += float("nan")
    tl.store(out + sequence.to(tl.int64) * so_b + head * so_h + dim, result.to(out.dtype.element_ty), mask=dim < DIM)


@torch.library.custom_op("turnout::decode_attend", mutates_args=())
def decode_op(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, page_table: Tensor | None, total_decay: Tensor | None,
    directions: Tensor | None, suppress: Tensor | None, scale: float, window: int, sinks: int, n_programs: int,
) -> Tensor:  # fmt: skip
    """Launch the three kernels; the arguments are those of `decode_attend`, checked there.

    Args:
        window: 0 = none.
        n_programs: persistent programs of the split kernel; 0 takes two per multiprocessor.
    """
    n_batch, n_heads, dim = q.shape
    n_groups, n_lists = k.shape[2], rows.shape[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not out.numel():
        return out
    size, n_items = n_heads // n_groups, n_batch * n_groups
    config = config_of(q)
    n_programs = n_programs or config.per_sm * _n_multiprocessors(q.device)
    page = k.shape[1] if page_table is not None else 0
    room = k.shape[1] if page_table is None else page * page_table.shape[1]
    rows = rows.contiguous()
    cum = torch.empty(n_items + 1, dtype=torch.int32, device=q.device)
    part = torch.empty(n_programs + n_items, size, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(n_programs + n_items, size, dtype=torch.float32, device=q.device)
    chunk = min(PLAN_BLOCK, max(16, triton.next_power_of_2(n_items)))
    pattern = {"WINDOW": window, "SINKS": sinks, "BLOCK": config.block}
    plan_kernel[(1,)](rows, cum, n_items, room, n_groups, n_lists, **pattern, CHUNK=chunk)
    table, decay = page_table if page_table is not None else rows, total_decay if total_decay is not None else q
    split_kernel[(n_programs,)](
        q, k, v, rows, table, decay, cum, part, lse,
        n_items, room, n_groups, n_lists, k.shape[0], scale,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), k.stride(2), v.stride(0), v.stride(1), v.stride(2),
        table.stride(0), decay.stride(0), decay.stride(1),
        SIZE=size, DIM=dim, M=max(16, triton.next_power_of_2(size)), BD=padded(dim), **pattern, PAGE=page,
        DECAY=total_decay is not None, CHUNK=chunk,
        num_warps=config.warps, num_stages=config.stages, maxnreg=REGISTERS,
    )  # fmt: skip
    n_directions = 0 if directions is None else directions.shape[1]
    merge_kernel[(n_heads, n_batch)](
        rows, cum, part, lse, q if directions is None else directions.contiguous(),
        q if suppress is None else suppress.contiguous(), out,
        n_items, room, n_groups, n_lists, n_programs, n_directions, out.stride(0), out.stride(1),
        SIZE=size, DIM=dim, BD=padded(dim), DIRECTIONS=triton.next_power_of_2(n_directions) if n_directions else 0,
        SLOTS=MERGE_BLOCK,
    )  # fmt: skip
    return out


@decode_op.register_fake
def _(q, k, v, rows, page_table, total_decay, directions, suppress, scale, window, sinks, n_programs):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def padded(dim: int) -> int:
    """Head dim as a tile: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(dim))


def config_of(q: Tensor) -> Config:
    """The tile of a dtype and head dim."""
    return CONFIGS[q.element_size(), padded(q.shape[-1])]


@functools.lru_cache
def _n_multiprocessors(device: torch.device) -> int:
    # The interpreter runs programs one after the other: few, so that shares are large enough to cross items.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
