"""Compaction in one launch on the device: every program counts the rows before its tokens, then writes its own.

Axes: B batch, T tokens, G routing groups, C capacity (slots per list).
"""

# The operator's schema is read from its annotations, which therefore are not postponed.
import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens that one program lists, and tokens that it counts in one load (at most).
CHUNK = 2048
READ = 8192


@triton.jit
def _taken(taken_base, gate_base, token, n_tokens, stride_t, stride_gate, GATE: tl.constexpr):
    """1 where a token attends, int32; a gate that is NaN does not."""
    inside = token < n_tokens
    taken = tl.load(taken_base + token.to(tl.int64) * stride_t, mask=inside, other=0).to(tl.int32)
    if GATE:
        gate = tl.load(gate_base + token.to(tl.int64) * stride_gate, mask=inside, other=0.0)
        taken = tl.where(gate == gate, taken, 0)
    return taken


@triton.jit(do_not_specialize=["n_tokens", "n_groups", "n_slots", "n_chunks"])
def compact_kernel(
    taken_ptr, gate_ptr, rows_ptr, count_ptr, dropped_ptr,
    stride_b, stride_t, stride_g, gate_stride_b, gate_stride_t, gate_stride_g, n_tokens, n_groups, n_slots, n_chunks,
    CHUNK: tl.constexpr, READ: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """rows int64 [B, G, C] ascending with -1 in empty slots; count, dropped int64 [B, G]."""
    chunk, one = tl.program_id(0) % n_chunks, tl.program_id(0) // n_chunks
    batch, group = (one // n_groups).to(tl.int64), one % n_groups
    taken_base = taken_ptr + batch * stride_b + group * stride_g
    gate_base = gate_ptr
    if GATE:
        gate_base = gate_ptr + batch * gate_stride_b + group * gate_stride_g
    first = chunk * CHUNK
    # One sum at the end: a sum in the loop would wait for all warps at every step.
    seen = tl.zeros([READ], tl.int32)
    earlier = tl.zeros([READ], tl.int32)
    for start in range(0, n_tokens, READ):
        token = start + tl.arange(0, READ)
        taken = _taken(taken_base, gate_base, token, n_tokens, stride_t, gate_stride_t, GATE)
        seen += taken
        earlier += tl.where(token < first, taken, 0)
    total, before = tl.sum(seen, 0), tl.sum(earlier, 0)
    token = first + tl.arange(0, CHUNK)
    taken = _taken(taken_base, gate_base, token, n_tokens, stride_t, gate_stride_t, GATE)
    slot = before + tl.cumsum(taken, 0) - 1
    rows_base = rows_ptr + tl.cast(one, tl.int64) * n_slots
    tl.store(rows_base + slot, token.to(tl.int64), mask=(taken > 0) & (slot < n_slots))
    kept = tl.minimum(total, n_slots)
    # The empty slots, shared among the programs of the list.
    for start in range(kept + chunk * CHUNK, n_slots, n_chunks * CHUNK):
        empty = start + tl.arange(0, CHUNK)
        tl.store(rows_base + empty, tl.full([CHUNK], -1, tl.int64), mask=empty < n_slots)
    if chunk == 0:
        tl.store(count_ptr + one, kept.to(tl.int64))
        tl.store(dropped_ptr + one, (total - kept).to(tl.int64))


@torch.library.custom_op("turnout::compact_rows", mutates_args=())
def compact_rows(taken: Tensor, gate: Tensor | None, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """The earliest `capacity` rows of `taken` bool [B, T, G] whose gate is not NaN: rows, count, dropped."""
    n_batch, n_tokens, n_groups = taken.shape
    rows, count, dropped = _empty(taken, gate, capacity)
    n_chunks = max(-(-n_tokens // CHUNK), 1)
    strides = (0, 0, 0) if gate is None else gate.stride()
    arguments = {
        "taken_ptr": taken.view(torch.uint8), "gate_ptr": gate, "rows_ptr": rows, "count_ptr": count,
        "dropped_ptr": dropped, "stride_b": taken.stride(0), "stride_t": taken.stride(1), "stride_g": taken.stride(2),
        "gate_stride_b": strides[0], "gate_stride_t": strides[1], "gate_stride_g": strides[2],
        "n_tokens": n_tokens, "n_groups": n_groups, "n_slots": capacity, "n_chunks": n_chunks,
        "CHUNK": CHUNK, "READ": READ, "GATE": gate is not None,
    }  # fmt: skip
    if n_batch * n_groups:
        with torch.cuda.device(taken.device) if taken.is_cuda else contextlib.nullcontext():
            compact_kernel[(n_chunks * n_batch * n_groups,)](**arguments, num_warps=8)
    return rows, count, dropped


@compact_rows.register_fake
def _empty(taken: Tensor, gate: Tensor | None, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    n_batch, _, n_groups = taken.shape
    lists = taken.new_empty(n_batch, n_groups, capacity, dtype=torch.int64)
    return lists, lists.new_empty(n_batch, n_groups), lists.new_empty(n_batch, n_groups)
