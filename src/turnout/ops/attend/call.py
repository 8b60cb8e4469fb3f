"""One validated call of the operator: every argument checked once, in one normal form that all implementations read.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, K keys kept (or directions) per query.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, UnsupportedError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int64, torch.int32)
# Whether index values are looked at on other devices too, where each look waits for the device.
CHECKS_VALUES = os.environ.get("TURNOUT_CHECK_VALUES") == "1"
# How far from 1 a direction may be long: as far as a unit vector in bfloat16.
_UNIT = 2**-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The arguments of `attend` after validation: `rows` and `starts` are int64 [B, 1 or G, R] or None.

    `log_decay` is [B, S, H]; `rates` [H] says the same where every step has one decay that takes no gradient.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor | None
    keys: Tensor | None
    log_decay: Tensor | None
    window: int | None
    sinks: int
    directions: Tensor | None
    suppress: Tensor | None
    scale: float
    starts: Tensor | None = None
    key_block: int = 1
    row_block: int = 1
    rates: Tensor | None = None

    @property
    def group_size(self) -> int:
        """Query heads that share one kv head."""
        return self.q.shape[2] // self.k.shape[2]

    def positions(self) -> Tensor:
        """Position of every query row, int64 [B, 1 or G, R]; -1 marks an empty slot."""
        if self.rows is not None:
            return self.rows
        n_rows, n_keys = self.q.shape[1], self.k.shape[1]
        rows = torch.arange(n_keys - n_rows, n_keys, device=self.q.device)
        return rows.expand(self.q.shape[0], 1, n_rows)


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: Tensor | None,
    keys: Tensor | None,
    log_decay: Tensor | None,
    window: int | None,
    sinks: int,
    directions: Tensor | None,
    suppress: Tensor | None,
    scale: float | None,
    starts: Tensor | None = None,
    key_block: int = 1,
    row_block: int = 1,
) -> Call:
    """Check shapes, types, devices and (on the CPU only, where it costs no synchronisation) index values.

    Raises:
        ShapeError: a tensor has the wrong shape, type or device, or `rows` is not a sorted list inside the sequence.
        ConfigError: a number or a combination of arguments has no meaning.
        UnsupportedError: a dtype that no implementation computes in.
    """
    needed = {"q": q, "k": k, "v": v}
    optional = {"rows": rows, "starts": starts, "keys": keys, "log_decay": log_decay, "directions": directions}
    _check_tensors(needed, optional | {"suppress": suppress})
    q, k, v = autocast(q, k, v)
    _check_qkv(q, k, v)
    _check_pattern(window, sinks)
    _check_blocks(keys, key_block, row_block)
    if log_decay is not None and log_decay.dim() == 1 and log_decay.shape[0] == q.shape[2]:
        log_decay = log_decay.expand(q.shape[0], k.shape[1], -1)
    call = Call(
        q=q,
        k=k,
        v=v,
        rows=None if rows is None else _check_rows(rows, q, k),
        starts=None if starts is None else _check_starts(starts, rows, q, k),
        keys=None if keys is None else _check_keys(keys, q, k, key_block, row_block),
        key_block=key_block,
        row_block=row_block,
        log_decay=None if log_decay is None else _check_log_decay(log_decay, q, k),
        rates=None if log_decay is None else _rates(log_decay),
        window=window,
        sinks=sinks,
        directions=directions,
        suppress=suppress,
        scale=q.shape[-1] ** -0.5 if scale is None else finite_scale(scale),
    )
    if rows is None and q.shape[1] > k.shape[1]:
        raise ShapeError(
            f"q has {q.shape[1]} rows but k has only {k.shape[1]} positions, and rows=None means the last rows; "
            "pass rows=, or at most one query row per key position"
        )
    _check_directions(call)
    return call


def _check_tensors(needed: Mapping[str, object], optional: Mapping[str, object]) -> None:
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in {**needed, **given}.items():
        if not isinstance(value, Tensor):
            raise ShapeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor; use torch.tensor(...)")


def finite_scale(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ConfigError(f"scale={scale!r}; expected a finite number, or None for head_dim ** -0.5")
    return float(scale)


def autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast use its dtype, as torch's own attention does."""
    device = q.device.type
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    return q, k, v


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ShapeError(
                f"{name} has shape {list(tensor.shape)}; expected 4 axes [batch, positions, heads, head_dim]; "
                "use .unflatten(-1, (heads, head_dim))"
            )
        if tensor.dtype not in DTYPES:
            raise UnsupportedError(
                f"{name} is {tensor.dtype}; expected one of {[str(d) for d in DTYPES]}; cast it first"
            )
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ShapeError(
                f"{name} is {tensor.dtype} on {tensor.device} but q is {q.dtype} on {q.device}; "
                "bring q, k and v to one dtype and device"
            )
    if k.shape != v.shape:
        raise ShapeError(f"v has shape {list(v.shape)}; expected the shape of k, {list(k.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ShapeError(
            f"q has shape {list(q.shape)} and k {list(k.shape)}; expected the same batch size and head dim in both"
        )
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ShapeError(
            f"q has {q.shape[2]} heads and k has {k.shape[2]}; expected a multiple, so that each kv head serves "
            "a whole number of query heads"
        )
    if q.shape[3] == 0:
        raise ShapeError("q has head dim 0; expected at least 1")


def _check_pattern(window: int | None, sinks: int) -> None:
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"window={window!r}; expected None or a whole number >= 1 (1 = the row's own position only)")
    if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
        raise ConfigError(f"sinks={sinks!r}; expected a whole number >= 0")
    if sinks and window is None:
        raise ConfigError(f"sinks={sinks} without a window has no effect (all keys are visible); pass window= as well")


def _check_blocks(keys: Tensor | None, key_block: int, row_block: int) -> None:
    for name, size in (("key_block", key_block), ("row_block", row_block)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name}={size!r}; expected a whole number >= 1 (1 = single tokens)")
        if size > 1 and keys is None:
            raise ConfigError(f"{name}={size} without keys has no effect; pass keys= as well")


def _readable(tensor: Tensor) -> bool:
    """Whether looking at the values costs no synchronisation, or was asked for; a compiler has none to look at."""
    free = tensor.device.type == "cpu" or CHECKS_VALUES
    return free and tensor.numel() > 0 and not torch.compiler.is_compiling()


def _check_index(name: str, index: Tensor, q: Tensor) -> None:
    if index.dtype not in INDEX_DTYPES:
        raise ShapeError(f"{name} is {index.dtype}; expected int64 token positions (-1 = empty slot)")
    if index.device != q.device:
        raise ShapeError(f"{name} is on {index.device} but q is on {q.device}; move it with .to(q.device)")


def _check_lists(name: str, lists: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """One number a row, [B, R] or [B, 1 or G, R] → int64 [B, 1 or G, R]."""
    _check_index(name, lists, q)
    n_batch, n_rows, n_groups = q.shape[0], q.shape[1], k.shape[2]
    shapes = ([n_batch, n_rows], [n_batch, 1, n_rows], [n_batch, n_groups, n_rows])
    if list(lists.shape) not in shapes:
        raise ShapeError(
            f"{name} has shape {list(lists.shape)}; expected [B, R] = {shapes[0]}, or [B, G, R] = {shapes[2]} with one "
            "list per kv head"
        )
    lists = lists.to(torch.int64)
    return lists[:, None] if lists.dim() == 2 else lists


def _check_rows(rows: Tensor, q: Tensor, k: Tensor) -> Tensor:
    rows = _check_lists("rows", rows, q, k)
    if _readable(rows):
        _check_row_values(rows, k.shape[1])
    return rows


def _check_starts(starts: Tensor, rows: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    starts = _check_lists("starts", starts, q, k)
    if _readable(starts):
        # Empty slots hold anything.
        taken = None if rows is None else rows if rows.dim() == 3 else rows[:, None]
        seen = starts if taken is None else torch.where(taken < 0, k.shape[1], starts)
        low = seen.amin()
        own = torch.arange(k.shape[1] - q.shape[1], k.shape[1]) if taken is None else taken
        late = (starts > own) & (own >= 0)
        if low < 0 or bool((seen[..., 1:] < seen[..., :-1]).any()) or bool(late.any()):
            raise ShapeError(
                f"starts holds {int(low)}, falls from one row to the next, or lies behind the row's own position; "
                "expected the first key position of each row's own sequence: 0 or more, never falling within a list, "
                "and at most the row's position, so that no row's sequence is empty"
            )
    return starts


def _check_row_values(rows: Tensor, n_keys: int) -> None:
    low, high = torch.aminmax(rows)
    if low < -1 or high >= n_keys:
        raise ShapeError(
            f"rows holds values {int(low)}..{int(high)}; expected positions 0..{n_keys - 1} of k, "
            "or -1 for an empty slot"
        )
    # An empty slot counts as "after everything": one comparison finds unsorted rows and slots that are not at the end.
    order = torch.where(rows < 0, n_keys, rows)
    if bool((order[..., 1:] < order[..., :-1] + (order[..., :-1] < n_keys)).any()):
        raise ShapeError(
            "rows is not sorted; expected strictly ascending positions, then the -1 (empty) slots, in each list"
        )


def _check_keys(keys: Tensor, q: Tensor, k: Tensor, key_block: int, row_block: int) -> Tensor:
    _check_index("keys", keys, q)
    expected = [q.shape[0], -(-q.shape[1] // row_block), k.shape[2]]
    if keys.dim() != 4 or list(keys.shape[:3]) != expected:
        first = "R" if row_block == 1 else f"ceil(R / {row_block})"
        raise ShapeError(f"keys has shape {list(keys.shape)}; expected [B, {first}, G, K] = {[*expected, 'K']}")
    if _readable(keys):
        low, high = torch.aminmax(keys)
        n_blocks = -(-k.shape[1] // key_block)
        if low < -1 or high >= n_blocks:
            what = "token positions" if key_block == 1 else f"indices of blocks of {key_block} keys,"
            raise ShapeError(
                f"keys holds values {int(low)}..{int(high)}; expected {what} 0..{n_blocks - 1}, or -1 for an empty slot"
            )
    return keys.to(torch.int64)


def _check_log_decay(log_decay: Tensor, q: Tensor, k: Tensor) -> Tensor:
    expected = [k.shape[0], k.shape[1], q.shape[2]]
    if list(log_decay.shape) != expected:
        raise ShapeError(f"log_decay has shape {list(log_decay.shape)}; expected [B, S, H] = {expected}, or [H]")
    if not log_decay.is_floating_point() or log_decay.device != q.device:
        raise ShapeError(f"log_decay is {log_decay.dtype} on {log_decay.device}; expected floats on {q.device}")
    if _readable(log_decay):
        low, high = torch.aminmax(log_decay.detach())
        if not bool(high <= 0) or not bool(torch.isfinite(low)):
            raise ShapeError(
                f"log_decay holds values {float(low)}..{float(high)}; expected finite numbers <= 0, "
                "the log of a decay in (0, 1]; use torch.nn.functional.logsigmoid or -softplus"
            )
    return log_decay


def _rates(log_decay: Tensor) -> Tensor | None:
    """The decay of every step, [H], if `log_decay` [B, S, H] repeats one in memory and takes no gradient."""
    repeats = log_decay.stride()[:2] == (0, 0) and min(log_decay.shape) > 0
    return log_decay[0, 0] if repeats and not log_decay.requires_grad else None


def _check_directions(call: Call) -> None:
    directions, suppress, q = call.directions, call.suppress, call.q
    if (directions is None) != (suppress is None):
        given, missing = ("directions", "suppress") if suppress is None else ("suppress", "directions")
        raise ConfigError(f"{given} is given without {missing}; pass both, or neither")
    if directions is None or suppress is None:
        return
    if directions.dim() != 3 or (directions.shape[0], directions.shape[2]) != (q.shape[2], q.shape[3]):
        raise ShapeError(
            f"directions has shape {list(directions.shape)}; expected [H, K, D] = [{q.shape[2]}, K, {q.shape[3]}]"
        )
    expected = [q.shape[0], q.shape[1], q.shape[2], directions.shape[1]]
    if list(suppress.shape) != expected:
        raise ShapeError(f"suppress has shape {list(suppress.shape)}; expected [B, R, H, K] = {expected}")
    for name, tensor in (("directions", directions), ("suppress", suppress)):
        if not tensor.is_floating_point() or tensor.device != q.device:
            raise ShapeError(f"{name} is {tensor.dtype} on {tensor.device}; expected floats on {q.device}")
    if not 1 <= directions.shape[1] <= q.shape[3]:
        raise ShapeError(
            f"K={directions.shape[1]} directions of heads of {q.shape[3]}; expected 1 <= K <= D (to remove none, pass "
            "neither directions nor suppress)"
        )
    _check_direction_values(directions.detach(), suppress.detach())


def _check_direction_values(directions: Tensor, suppress: Tensor) -> None:
    """Refuse what only looks like directions, where looking is free; rounding to half precision is let through."""
    if not _readable(directions) or not _readable(suppress):
        return
    size = directions.norm(dim=-1)
    try:
        unit, finite = bool(((size - 1).abs() < _UNIT).all()), bool(suppress.isfinite().all())
    except RuntimeError:
        # torch.func.vmap has no values to read.
        return
    if not unit:
        raise ShapeError(
            f"directions have lengths {size.min():.3g}..{size.max():.3g}; expected 1: a zero vector has no direction, "
            "others torch.nn.functional.normalize(directions, dim=-1) makes unit vectors of"
        )
    if not finite:
        raise ShapeError("suppress holds NaN or infinity; expected how much of each direction is removed, 0..1")
