"""What every kernel of one call is launched with: tensors and sizes in the form the kernels read.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, F = H / PACK packed heads, P = R · PACK.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from turnout.ops.attend.triton.configs import (
    DKDV_WITH_OPTIONS,
    DKDV_WITH_SUMS,
    DQ_WITH_OPTIONS,
    FULL,
    LEAST_PACKED,
    LOW,
    MOST_DIRECTIONS,
    MOST_PACKED,
    ORDINARY,
    ROOMY,
    SHORT,
    SPECIALISED,
    STEADY,
    WIDTHS,
    WITH_OPTIONS,
    Plan,
    Tile,
    choose_plan,
    family,
    forward_splits,
    padded,
    plan_of,
    row_splits,
    within_blocks,
)
from turnout.ops.attend.triton.support import has_gluon

LOG2E = math.log2(math.e)
# Multiprocessors that a plan without a device (tests on the CPU) is made for.
SMS_WITHOUT_DEVICE = 132
CAPABILITY_WITHOUT_DEVICE = (9, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The inputs of one call; optional tensors are None when the option is absent.

    `total` is Σ log_decay, float64 [B, S, H], or `rates` the log decay of every step, float32 [H]; `blocks` int32
    [B, n_tiles, G, K] holds chosen key blocks, ascending and each once, of which the first `n_blocks` [B, n_tiles, G]
    count; `window` 0 = none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor | None
    starts: Tensor | None
    total: Tensor | None
    blocks: Tensor | None
    n_blocks: Tensor | None
    directions: Tensor | None
    suppress: Tensor | None
    window: int
    sinks: int
    scale: float
    key_block: int
    row_block: int
    tiles: Sequence[int]
    rates: Tensor | None = None

    @property
    def decay(self) -> int:
        """0 without a decay, 1 with sums of it, STEADY with rates."""
        return STEADY if self.rates is not None else int(self.total is not None)

    @property
    def heads(self) -> int:
        return self.q.shape[2]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[2]

    @property
    def pack(self) -> int:
        """Query heads packed into a tile: all that share a kv head, or one where the decay tells them apart."""
        return self.heads // self.kv_heads if not self.decay else 1

    @property
    def packed_heads(self) -> int:
        return self.heads // self.pack

    @property
    def n_packed(self) -> int:
        return self.q.shape[1] * self.pack

    def has_options(self) -> bool:
        """Whether an option takes part in the loops over keys."""
        return self.window > 0 or any(x is not None for x in (self.starts, self.total, self.rates, self.blocks))

    def plan(self) -> Plan:
        """The tiles: those given, or the table's; within a block of keys and of rows if there are any."""
        if self.tiles:
            plan = plan_of(self.tiles)
        else:
            plan = choose_plan(
                family(capability(self.q.device)),
                self.q.element_size(),
                self.q.shape[3],
                self.n_packed,
                lean=self.has_options(),
            )
            plan = replace(plan, forward=self._with_room(self._specialised(plan.forward)))
            if self.has_options() and self._few_registers():
                width = self.q.shape[3]
                dkdv = (DKDV_WITH_OPTIONS if self.total is None else DKDV_WITH_SUMS)[width]
                # Partial sums of splits want registers too.
                dkdv = plan.dkdv if self.row_splits(dkdv) > 1 else dkdv
                plan = replace(plan, dq=plan.dq if self.blocks is not None else DQ_WITH_OPTIONS[width], dkdv=dkdv)
        if self.blocks is None:
            return plan
        tiles = (plan.forward, plan.dq, plan.dkdv)
        return Plan(*(within_blocks(tile, self.row_block * self.pack, self.key_block) for tile in tiles))

    def row_block_of(self, tile: Tile) -> int:
        """Packed rows that share a list of key blocks, which tiles walk in parts; without lists those of a tile."""
        return tile.rows if self.blocks is None else self.row_block * self.pack

    def n_tiles(self, tile: Tile) -> int:
        block = self.row_block_of(tile)
        return -(-self.n_packed // block) * -(-block // tile.rows)

    def key_splits(self, tile: Tile) -> tuple[int, int]:
        """Into how many the keys of a tile of rows are split, and keys a split; lists are not split."""
        if self.blocks is not None:
            return 1, 0
        n_heads = self.q.shape[0] * self.packed_heads
        return forward_splits(tile, self.n_tiles(tile), n_heads, self.span(tile), self.n_sms())

    def row_splits(self, tile: Tile) -> int:
        """Into how many the rows of a block of keys are split in dK/dV."""
        n_blocks = -(-self.k.shape[1] // tile.keys) * self.k.shape[0] * self.k.shape[2]
        return row_splits(tile, n_blocks, self.n_sms(), self.n_tiles(tile))

    def span(self, tile: Tile) -> int:
        """Most keys between the first window and the last row of a tile; listed rows may lie anywhere."""
        n_keys = self.k.shape[1]
        if not self.window or self.rows is not None:
            return n_keys
        return min(n_keys, self.window + -(-tile.rows // self.pack) + tile.keys)

    def decay_parts(self) -> tuple[Tensor | None, Tensor | None]:
        """Σ log_decay in base 2 as the sum of two float32 [B, H, S]; the rates alone if that is what there is."""
        if self.total is None:
            return self.rates, None
        total = (self.total * LOG2E).transpose(1, 2)
        high = total.float().contiguous()
        return high, (total - high).float().contiguous()

    def key_decay(self, n: int) -> Tensor | None:
        """Σ log_decay in base 2 from each key's block of `n` on: c[first of the block] − c[s], float32 [B, H, S]."""
        if self.total is None:
            return None
        total = (self.total * LOG2E).transpose(1, 2)
        first = torch.arange(total.shape[2], device=total.device) // n * n
        return (total[..., first] - total).float().contiguous()

    def of_rows(self, of_keys: Tensor | None) -> Tensor | None:
        """What belongs to keys, [B, H, S], at every row: [B, H, R], that of the first position in an empty slot."""
        if of_keys is None or self.total is None:
            return None
        if self.rows is None:
            return of_keys[..., of_keys.shape[2] - self.q.shape[1] :].contiguous()
        return of_keys.gather(2, self.rows.clamp(min=0).repeat_interleave(self.heads // self.rows.shape[1], 1))

    def arguments(self) -> dict[str, Any]:
        """Arguments that all kernels with a key loop share."""
        q, k, v = self.q, self.k, self.v
        high, low = self.decay_parts()
        return {
            "q_ptr": q, "rows_ptr": self.rows, "starts_ptr": self.starts,
            "hi_ptr": high, "lo_ptr": low,
            "stride_qb": q.stride(0), "stride_qt": q.stride(1), "stride_qh": q.stride(2),
            "stride_kb": k.stride(0), "stride_kt": k.stride(1), "stride_kh": k.stride(2),
            "stride_vb": v.stride(0), "stride_vt": v.stride(1), "stride_vh": v.stride(2),
            "n_batch": q.shape[0], "n_rows": q.shape[1], "n_keys": k.shape[1],
            "window": self.window, "sinks": self.sinks,
            "HEADS": self.heads, "KV_HEADS": self.kv_heads, "PACK": self.pack,
            "D": q.shape[3], "BD": padded(q.shape[3]), "PRECISION": precision(q.dtype),
            "ROW_LISTS": 0 if self.rows is None else self.rows.shape[1],
            "START_LISTS": 0 if self.starts is None else self.starts.shape[1],
            "WINDOW": self.window > 0, "SINKS": self.sinks > 0, "DECAY": self.decay,
        }  # fmt: skip

    def row_matrices(self, tile: Tile, grad: Tensor) -> dict[str, Any]:
        """q and the gradient of o as matrices [B·R, H·D] for bulk copies, or None where pointers serve."""
        if not (tile.tma and self.pack == 1 and self._bulk_copies(self.q) and self._bulk_copies(grad)):
            return {"q_matrix": None, "grad_matrix": None, "TMA": False}
        return {"q_matrix": _matrix(self.q, tile.rows), "grad_matrix": _matrix(grad, tile.rows), "TMA": True}

    def q_copied(self) -> Tensor | None:
        """q if tiles of it can be bulk copies: its rows lie one after another unless heads share a tile."""
        return self.q if self.pack == 1 and self._bulk_copies(self.q) else None

    def _cut_copies(self) -> bool:
        """Whether directions can come with the rows by bulk copies: amounts in rows of whole 16 bytes, and those of a
        head in one copy, which starts at whole 16 bytes."""
        if self.directions is None or self.suppress is None:
            return True
        k = self.directions.shape[1]
        reach = max(head * k % 8 for head in range(self.heads)) + k
        aligned = self.directions.data_ptr() % 16 == 0 and self.suppress.data_ptr() % 16 == 0
        whole = self.heads * k * self.q.element_size() % 16 == 0
        return reach <= MOST_DIRECTIONS and whole and aligned and self.q_copied() is not None

    def keys_values(self, tile: Tile) -> dict[str, Any]:
        """k and v for a loop over keys: pointers, or descriptors of bulk copies if tile and tensors allow."""
        if not (tile.tma and self._bulk_copies(self.k) and self._bulk_copies(self.v)):
            return {"k_ptr": self.k, "v_ptr": self.v, "TMA": False}
        return {"k_ptr": _matrix(self.k, tile.keys), "v_ptr": _matrix(self.v, tile.keys), "TMA": True}

    def _specialised(self, tile: Tile) -> Tile:
        """The tile in which `hopper.py` runs the call; another where the call or the device is none for it.

        Args:
            tile: what the tables say.
        """
        cut, options = self.directions is not None, self.has_options()
        # Heads of 64 without an option: only where sequences are short, and the tables say the rest.
        brief = self.q.shape[3] == 64 and not cut and self.k.shape[1] <= SHORT
        if not (options or brief or tile.tma == SPECIALISED):
            return tile
        here = self.q.is_cuda and capability(self.q.device) == (9, 0) and has_gluon()
        copies = self.k.numel() > 0 and self._bulk_copies(self.k) and self._bulk_copies(self.v)
        fits = self.q.element_size() == 2 and self.q.shape[3] in WIDTHS and MOST_PACKED % self.pack == 0
        able = not (self.sinks or self.blocks is not None or (cut and (options or self.pack > 1)))
        able = able and self._cut_copies()
        # Pruned decays of heads of 64 are a fifth faster in the tables' tiles, of which more are at work at once.
        able = able and not (self.decay and self.starts is not None and self.q.shape[3] == 64)
        if not (here and copies and fits and able):
            return ORDINARY if tile.tma == SPECIALISED else tile
        if options or brief:
            return WITH_OPTIONS[self.q.shape[3]] if self.n_packed > LEAST_PACKED else tile
        return LOW if self.pack > 1 or self.k.shape[1] <= SHORT else tile

    def _with_room(self, tile: Tile) -> Tile:
        """The tile, or a lower one where directions or splits want registers of their own."""
        crowded = tile == FULL and (self.directions is not None or self.key_splits(tile)[0] > 1)
        return ROOMY if crowded else tile

    def _few_registers(self) -> bool:
        """Whether a backward pass with options has room for tall tiles: half precision, one decay a head, no lists
        beside it."""
        here = capability(self.q.device) == (9, 0) and self.q.element_size() == 2 and self.q.shape[3] in WIDTHS
        return here and (not self.decay or (self.blocks is None and self.heads == self.kv_heads))

    def _bulk_copies(self, x: Tensor) -> bool:
        """Whether [B, S, G, D] is one matrix [B·S, G·D] with aligned rows, on a device with a copy engine."""
        n_batch, n_keys, _, width = x.shape
        one_matrix = x.stride(2) == width and (n_batch == 1 or x.stride(0) == n_keys * x.stride(1))
        aligned = x.data_ptr() % 16 == 0 and x.stride(1) * x.element_size() % 16 == 0
        return one_matrix and aligned and width == padded(width) and capability(x.device) >= (9, 0)

    def n_sms(self) -> int:
        return n_sms(self.q.device)


def _matrix(x: Tensor, height: int) -> Any:
    """[B, S, G, D] as the matrix [B·S, G·D], copied in blocks of `height` rows of one head."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    n_batch, n_keys, n_groups, width = x.shape
    return TensorDescriptor(x, [n_batch * n_keys, n_groups * width], [x.stride(1), 1], [height, width])


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else CAPABILITY_WITHOUT_DEVICE


@lru_cache
def n_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return SMS_WITHOUT_DEVICE
    return torch.cuda.get_device_properties(device).multi_processor_count


def precision(dtype: torch.dtype) -> str:
    """How float32 products are computed; the name does not matter in half precision."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def run(kernel: Any, n_programs: int, arguments: dict[str, Any], *, warps: int, stages: int = 1) -> None:
    """Launch; every launch of this package comes through here."""
    if n_programs:
        kernel[(n_programs,)](**arguments, num_warps=warps, num_stages=stages)


Runner = Callable[..., None]


def last_contiguous(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where its last dimension has gaps."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
