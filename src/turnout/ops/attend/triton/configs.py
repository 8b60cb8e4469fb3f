"""Tile tables of the kernels, and the choice of a plan from static numbers: never from what is routed.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, P = R · PACK packed rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

MAX_HEAD_DIM = 256
# tl.dot needs at least 16 in every dimension.
LEAST = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Programs a multiprocessor that keep it busy, and from how many on they are left whole: tiles of every length fill the
# gaps of each other.
PROGRAMS_PER_SM, WHOLE_FROM = 4, 1.75
# A program of a tall tile fills a multiprocessor; what its start, its partial result and the merge cost, in keys.
TALL, START = 128, 1300
# The least keys worth a program of their own.
LEAST_SPAN = 256
MOST_SPLITS = 64
# A backward with fewer programs than this a multiprocessor is split over rows.
BACKWARD_PER_SM = 1


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys of a tile, warps and pipeline stages; `splits` 0 = decided by the sizes.

    `tma` 1 = bulk copies, SPECIALISED = the kernel of `hopper.py`, whose tile is that of two warpgroups.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    splits: int = 0
    tma: int = 0


SPECIALISED = 2
# The kernels' DECAY where every step has the same.
STEADY = 2
FIELDS = ("rows", "keys", "warps", "stages", "splits", "tma")


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiles of the three large kernels."""

    forward: Tile
    dq: Tile
    dkdv: Tile


# (bytes of an element, padded head dim) → tiles from the lowest to the tallest; the choice is by packed rows.
Table = dict[tuple[int, int], tuple[Tile, ...]]

# float32 products run on the ordinary units, and their operands fill the registers: low tiles everywhere. At width 256
# no tile fits both kinds of device.
_SINGLE: dict[str, Table] = {
    "forward": {(4, 64): (Tile(32, 32, 4, 2),), (4, 128): (Tile(16, 32, 8, 1),), (4, 256): (Tile(16, 16, 8, 1),)},
    "dq": {(4, 64): (Tile(32, 32, 4, 2),), (4, 128): (Tile(16, 16, 8, 2),)},
    "dkdv": {(4, 64): (Tile(16, 32, 4, 2),), (4, 128): (Tile(16, 16, 8, 1),)},
}
# Compute capability 9.0 and newer data centre parts: at most 227 KB of shared memory, matrix units that take 64 rows.
# Widths 64 and 128 are the fastest of a sweep on an H200 that do not spill (results/bench); bulk copies pay throughout.
_HOPPER: dict[str, Table] = {
    "forward": {
        (2, 64): (Tile(16, 64, 4, 3), Tile(64, 128, 4, 3, tma=1)),
        (2, 128): (Tile(16, 64, 4, 3), Tile(64, 32, 4, 3, tma=1), Tile(128, 128, 4, 2, tma=SPECIALISED)),
        (2, 256): (Tile(16, 32, 8, 2), Tile(64, 64, 8, 3), Tile(128, 32, 8, 2)),
    },
    "dq": {
        (2, 64): (Tile(16, 64, 4, 2), Tile(64, 64, 4, 3, tma=1)),
        (2, 128): (Tile(16, 64, 4, 2), Tile(64, 32, 4, 3, tma=1), Tile(128, 64, 8, 3, tma=1)),
        (2, 256): (Tile(16, 32, 4, 2), Tile(64, 32, 8, 2)),
        (4, 256): (Tile(16, 32, 16, 2),),
    },
    "dkdv": {
        (2, 64): (Tile(16, 64, 4, 2), Tile(64, 64, 4, 2)),
        (2, 128): (Tile(32, 64, 4, 2, tma=1),),
        (2, 256): (Tile(16, 32, 8, 1), Tile(32, 32, 8, 1)),
        (4, 256): (Tile(16, 32, 8, 2),),
    },
}
# The head dims of the specialised kernel, and the rows of a warpgroup, in which grouped heads must fit whole; plain
# calls of head dim 64 take it up to SHORT keys (a third faster at 1,024; no faster at 16,384).
WIDTHS, MOST_PACKED = (64, 128), 64
# In place of a specialised tile, where the call or the device is none for it.
ORDINARY = Tile(128, 128, 8, 3, tma=1)
# Directions of one head that its epilogue removes in one product.
MOST_DIRECTIONS = 16
# Up to SHORT keys, and where directions or grouped heads hold registers, blocks of keys are lower.
SHORT, LOW = 2048, Tile(128, 64, 4, 4, tma=SPECIALISED)
# Calls with a decay, a window or starts, and short ones of head dim 64, take the specialised kernel from so many packed
# rows on, in these tiles.
LEAST_PACKED = 32
WITH_OPTIONS = {64: Tile(128, 64, 4, 6, tma=SPECIALISED), 128: Tile(128, 64, 4, 4, tma=SPECIALISED)}
# Their dQ and dK/dV, unless heads of several decays share keys; sums of a decay hold registers in dK/dV. Key lists
# take the latter, too.
DQ_WITH_OPTIONS = {64: Tile(64, 64, 4, 3, tma=1), 128: Tile(128, 64, 8, 3, tma=1)}
DKDV_WITH_OPTIONS = {64: Tile(64, 64, 4, 2, tma=1), 128: Tile(32, 64, 4, 2, tma=1)}
DKDV_WITH_SUMS = {64: Tile(64, 64, 4, 2, tma=1), 128: Tile(16, 64, 4, 2, tma=1)}
# A tile without room for directions or for a share of its keys, and what takes its place there.
FULL, ROOMY = Tile(128, 32, 8, 2), Tile(64, 64, 8, 3)
# From so many tiles a multiprocessor on its programs stay and take one after another.
STAYS_FROM = 12
# All others: at most 99 KB, which every part from 8.0 on has.
_AMPERE: dict[str, Table] = {
    "forward": {
        (2, 64): (Tile(16, 64, 4, 3), Tile(64, 64, 4, 3), Tile(128, 128, 8, 3)),
        (2, 128): (Tile(16, 64, 2, 3), Tile(64, 32, 4, 3)),
        (2, 256): (Tile(64, 32, 8, 2),),
        (4, 64): (Tile(16, 32, 4, 2),),
    },
    "dq": {
        (2, 64): (Tile(16, 64, 4, 2), Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)),
        (2, 128): (Tile(16, 64, 4, 2), Tile(64, 32, 4, 3)),
        (2, 256): (Tile(16, 32, 8, 2), Tile(64, 32, 8, 1)),
        (4, 256): (Tile(16, 32, 16, 1),),
    },
    "dkdv": {
        (2, 64): (Tile(16, 64, 8, 2), Tile(32, 64, 4, 2)),
        (2, 128): (Tile(32, 64, 8, 2),),
        (2, 256): (Tile(16, 32, 8, 1), Tile(32, 32, 8, 1)),
        (4, 256): (Tile(32, 16, 8, 2),),
    },
}
TABLES: dict[str, dict[str, Table]] = {
    name: {kernel: _SINGLE[kernel] | table[kernel] for kernel in table}
    for name, table in (("hopper", _HOPPER), ("ampere", _AMPERE))
}
# Masks, decay and lists hold registers of their own: one tile that leaves room for them.
_LEAN: dict[tuple[int, int], Plan] = {
    (2, 64): Plan(Tile(64, 64, 8, 3), Tile(64, 64, 8, 2), Tile(32, 64, 8, 2)),
    (2, 128): Plan(Tile(64, 32, 4, 2), Tile(64, 64, 8, 2), Tile(32, 64, 8, 1)),
    (2, 256): Plan(Tile(64, 32, 8, 2), Tile(16, 32, 8, 1), Tile(32, 32, 8, 2)),
    (4, 64): Plan(Tile(16, 32, 4, 2), Tile(32, 16, 4, 1), Tile(16, 32, 8, 1)),
    (4, 128): Plan(Tile(16, 16, 8, 1), Tile(16, 16, 8, 2), Tile(16, 16, 8, 1)),
    (4, 256): Plan(Tile(16, 16, 8, 1), *(_AMPERE[kernel][4, 256][0] for kernel in ("dq", "dkdv"))),
}
# Products that read shared memory leave twice the keys room in registers.
LEAN: dict[str, dict[tuple[int, int], Plan]] = {
    "ampere": _LEAN,
    "hopper": _LEAN
    | {
        (2, 64): Plan(Tile(64, 64, 4, 3, tma=1), Tile(64, 64, 4, 2, tma=1), Tile(32, 64, 4, 2)),
        (2, 128): Plan(Tile(64, 64, 4, 3, tma=1), Tile(64, 64, 4, 2, tma=1), _LEAN[2, 128].dkdv),
        (4, 256): Plan(_LEAN[4, 256].forward, *(_HOPPER[kernel][4, 256][0] for kernel in ("dq", "dkdv"))),
    },
}


def numbers_of(plan: Plan) -> list[int]:
    """A plan as the flat list of whole numbers that a torch operator takes."""
    return [getattr(tile, field) for tile in (plan.forward, plan.dq, plan.dkdv) for field in FIELDS]


def plan_of(numbers: Sequence[int]) -> Plan:
    """The inverse of `numbers_of`."""
    size = len(FIELDS)
    return Plan(*(Tile(*numbers[i * size : (i + 1) * size]) for i in range(3)))


def padded(width: int) -> int:
    """Head dim as the kernels see it: a power of two, at least 32."""
    return max(32, 1 << (width - 1).bit_length())


def family(capability: tuple[int, int]) -> str:
    """Which table a compute capability reads."""
    return "hopper" if capability[0] in (9, 10) else "ampere"


def choose_plan(name: str, itemsize: int, width: int, n_packed: int, *, lean: bool) -> Plan:
    """The tiles for `n_packed` packed rows of one packed head.

    Args:
        name: family of the device.
        itemsize: bytes of an element.
        width: head dim.
        n_packed: rows × query heads packed into a tile.
        lean: an option holds registers.
    """
    key = (itemsize, max(padded(width), 64))
    if lean:
        return LEAN[name][key]
    tables = TABLES[name]
    return Plan(*(_tallest_useful(tables[kernel][key], n_packed) for kernel in ("forward", "dq", "dkdv")))


def _tallest_useful(tiles: tuple[Tile, ...], n_packed: int) -> Tile:
    """A tile of BM rows wastes about BM / 2 of P packed rows' work (its triangle): the tallest with BM ≤ P / 4.

    The two warpgroups of a specialised tile stop each at its own last row; it only needs rows for one.
    """
    best = tiles[0]
    for tile in tiles:
        low = tile.rows <= 64 or tile.tma == SPECIALISED
        if tile.rows * 4 <= n_packed or (low and tile.rows // (4 if tile.tma == SPECIALISED else 2) < n_packed):
            best = tile
    return best


@lru_cache(maxsize=4096)
def forward_splits(tile: Tile, n_tiles: int, n_heads: int, n_span: int, n_sms: int) -> tuple[int, int]:
    """Splits of the keys, and keys a split (a multiple of the tile): enough programs, none too short.

    Args:
        tile: its `splits` decides if it is not 0.
        n_tiles: row tiles of one packed head.
        n_heads: batch × packed heads.
        n_span: most keys that a row can see.
        n_sms: multiprocessors.
    """
    programs = max(n_tiles * n_heads, 1)
    most = tile.splits or max(min(n_span // LEAST_SPAN, MOST_SPLITS), 1)
    if tile.splits or tile.rows < TALL:
        wanted = tile.splits or (1 if programs >= WHOLE_FROM * n_sms else math.ceil(PROGRAMS_PER_SM * n_sms / programs))
    else:
        # Of the programs of a split those whose tile ends before it have nothing to do.
        share = (n_tiles + 1) / (2 * n_tiles)
        whole = max(n_span, programs * share * n_span / n_sms) + START
        costs = {s: math.ceil(programs * share * s / n_sms) * (n_span / s + START) for s in range(2, most + 1)}
        wanted = min({1: whole, **costs}.items(), key=lambda one: one[1])[0]
    n_splits = max(min(wanted, most), 1)
    span = max(-(-n_span // (n_splits * tile.keys)) * tile.keys, tile.keys)
    return -(-n_span // span), span


def row_splits(tile: Tile, n_blocks: int, n_sms: int, n_row_tiles: int) -> int:
    """Splits of the rows in dK/dV: only where the key blocks alone leave multiprocessors idle."""
    if tile.splits:
        return tile.splits
    return max(min(BACKWARD_PER_SM * n_sms // max(n_blocks, 1), n_row_tiles, MOST_SPLITS), 1)


def within_blocks(tile: Tile, rows: int, keys: int) -> Tile:
    """The tile, cut to a smaller block of `rows` packed rows or `keys` keys; a larger one is walked in parts."""
    height = max(LEAST, 1 << (rows - 1).bit_length())
    low = tile.rows > height
    return replace(tile, rows=min(tile.rows, height), keys=min(tile.keys, keys), warps=4 if low else tile.warps)
