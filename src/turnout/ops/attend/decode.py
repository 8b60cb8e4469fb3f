"""`decode_attend`: attention of one new token a sequence against a cache, for the tokens whose gate is open.

Axes: B sequences, S cache positions, H query heads, G kv heads, D head dim, L row lists (1 or G), N pages, P positions
of a page, K directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, UnsupportedError, nearest
from turnout.ops.attend.api import attend
from turnout.ops.attend.call import finite_scale
from turnout.ops.attend.reference import compute_dtype, suppress_directions

DECODE_IMPLS = ("auto", "triton", "reference")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


def decode_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    *,
    page_table: Tensor | None = None,
    total_decay: Tensor | None = None,
    window: int | None = None,
    sinks: int = 0,
    directions: Tensor | None = None,
    suppress: Tensor | None = None,
    scale: float | None = None,
    keys: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention of one token a sequence, at position `rows`, over everything the cache holds up to it.

        s[j] = scale · <q, k_j> + c[row] − c[j]        over j ≤ row, in the window or the sinks;  c = total_decay
        o    = Σ_j softmax_j(s[j]) v_j;   o' = o − Σ_k suppress[k] · <o, d_k> d_k

    The buffers are given whole: how much of them counts is read from `rows` on the device, so that a CUDA graph replays
    any lengths and any routes. A sequence (or kv head) with row −1 stays local: its output is exactly 0 and its keys
    are not read. What lies behind a row may be uninitialised.

    Args:
        q: query of the new token, float [B, H, D].
        k: keys [B, S, G, D], or pages [N, P, G, D]; H % G == 0.
        v: values, like k.
        rows: position of the new token, int [B, L] with L = 1 or G; −1 = stays local.
        page_table: int32 [B, M], page of positions m·P … (m + 1)·P − 1; None = `k` and `v` are contiguous.
        total_decay: cumulative log decay c[t] = Σ_{i≤t} log_decay[i], float32 or float64 [B, S, H].
        window: row t sees t − window < j ≤ t; sinks: the first positions, visible in spite of the window.
        directions: unit vectors [H, K, D]; suppress: how much of each is removed, [B, H, K].
        scale: default D ** -0.5.
        keys: not implemented here.
        impl: "triton", "reference", or "auto" = triton on CUDA where it supports the dtype and head dim, elsewhere
            torch on the sequences that attend.
    Returns:
        o: like q, [B, H, D]. A row past the cache, or (kernel only) on a page that is not there, gives NaN.
    Raises:
        ShapeError: a tensor has the wrong shape, dtype or device; on the CPU also a row outside the cache.
        ConfigError: an option has no meaning.
        UnsupportedError: `keys`, a gradient, or `impl="triton"` for what the kernel does not do.
    Cost: kernel: bytes of the keys and values that are visible to open gates, in three launches.
    """
    if keys is not None:
        raise UnsupportedError(
            "decode_attend does not take keys (content routing); use attend(q[:, None], k, v, rows=rows[..., None], "
            "keys=keys, impl='reference')"
        )
    rows = rows[:, None] if rows.dim() == 1 else rows
    _check(q, k, v, rows, page_table)
    _check_options(q, k, page_table, total_decay, window, sinks, directions, suppress)
    chosen = _choose(q, k, impl)
    scale = q.shape[-1] ** -0.5 if scale is None else finite_scale(scale)
    if chosen != "triton":
        function = _reference if chosen == "reference" else _of_open_gates
        out = function(q, k, v, rows, page_table, total_decay, window, sinks, scale)
        return suppress_directions(out, directions, None if suppress is None else suppress[:, None])[:, 0].to(q.dtype)
    from turnout.ops.attend.triton.decode import decode_op

    return decode_op(
        _unit_stride(q), _unit_stride(k), _unit_stride(v), rows, page_table, total_decay, directions, suppress,
        scale, window or 0, sinks, 0,
    )  # fmt: skip


def _of_open_gates(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, page_table: Tensor | None, total_decay: Tensor | None,
    window: int | None, sinks: int, scale: float,
) -> Tensor:  # fmt: skip
    """On the CPU, where looking at `rows` is free, only sequences that attend are read, up to the longest of them."""
    if q.device.type != "cpu" or not rows.numel():
        return _reference(q, k, v, rows, page_table, total_decay, window, sinks, scale)
    out = q.new_zeros(q.shape[0], 1, *q.shape[1:], dtype=compute_dtype(q.dtype))
    live = (rows >= 0).any(1).nonzero()[:, 0]
    if len(live):
        stop = int(rows.max()) + 1
        if page_table is None:
            # Views where everybody attends: indexing copies.
            k, v = (t[:, :stop] if len(live) == len(q) else t[:, :stop][live] for t in (k, v))
        else:
            page_table = page_table[live, : -(-stop // k.shape[1])]
            stop = page_table.shape[1] * k.shape[1]
        if page_table is None and total_decay is None and bool((rows[live] == stop - 1).all()):
            # One length and no kv head that stays local, as in a batch that is decoded together.
            fast = attend(q[live][:, None], k, v, window=window, sinks=sinks, scale=scale)
            return out.index_copy(0, live, fast.to(out.dtype))
        decay = None if total_decay is None else total_decay[live, :stop]
        out = out.index_copy(0, live, _reference(q[live], k, v, rows[live], page_table, decay, window, sinks, scale))
    return out


def _reference(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, page_table: Tensor | None, total_decay: Tensor | None,
    window: int | None, sinks: int, scale: float,
) -> Tensor:  # fmt: skip
    """The specification, [B, 1, H, D] in the dtype it computes in; what lies behind a row is replaced by zeros."""
    if page_table is not None:
        table = page_table.long()
        k, v = k[table].flatten(1, 2), v[table].flatten(1, 2)
    n_heads, n_groups, n_keys = q.shape[1], k.shape[2], k.shape[1]
    dtype = compute_dtype(q.dtype)
    row = rows.long().repeat_interleave(n_heads // rows.shape[1], 1)[..., None]
    key = torch.arange(n_keys, device=q.device)
    visible = key <= row
    if window is not None:
        visible = visible & ((key > row - window) | (key < sinks))
    k, v = (t.to(dtype).repeat_interleave(n_heads // n_groups, 2).transpose(1, 2) for t in (k, v))
    k, v = k.masked_fill(~visible[..., None], 0.0), v.masked_fill(~visible[..., None], 0.0)
    score = torch.einsum("bhd,bhsd->bhs", q.to(dtype), k) * scale
    if total_decay is not None:
        total = total_decay.transpose(1, 2)
        score = score + (total.gather(2, row.clamp(0, n_keys - 1)) - total).to(dtype)
    score = score.masked_fill(~visible, torch.finfo(dtype).min)
    weight = score.softmax(-1).masked_fill(~visible, 0.0)
    out = torch.einsum("bhs,bhsd->bhd", weight, v)
    return out.masked_fill(row >= n_keys, float("nan"))[:, None]


def has_decode_kernel(k: Tensor) -> bool:
    """Whether `impl="auto"` runs the kernel on a cache like `k`."""
    return k.is_cuda and k.dtype in KERNEL_DTYPES and k.shape[-1] <= MAX_HEAD_DIM


def _choose(q: Tensor, k: Tensor, impl: str) -> str:
    if impl not in DECODE_IMPLS:
        raise ConfigError(f"impl={impl!r} is not an implementation of decode_attend{nearest(impl, DECODE_IMPLS)}")
    if impl == "reference":
        return impl
    why = ""
    if q.dtype not in KERNEL_DTYPES:
        why = f"the kernel computes in {[str(d) for d in KERNEL_DTYPES]}, not in {q.dtype}"
    elif q.shape[-1] > MAX_HEAD_DIM:
        why = f"the kernel takes head dims up to {MAX_HEAD_DIM}, not {q.shape[-1]}"
    elif torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        why = "the kernel has no backward; decode under torch.no_grad()"
    if impl == "triton" and why:
        raise UnsupportedError(f"impl='triton' cannot run this call, because {why}; use impl='reference'")
    return "triton" if impl == "triton" or (q.is_cuda and not why) else "torch"


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, page_table: Tensor | None) -> None:
    if q.dim() != 3 or k.dim() != 4 or k.shape != v.shape:
        raise ShapeError(
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; expected q [B, H, D], and k and v of one shape "
            "[B, S, G, D] (or pages [N, P, G, D])"
        )
    if {k.dtype, v.dtype, q.dtype} != {q.dtype} or {k.device, v.device, rows.device} != {q.device}:
        raise ShapeError(
            f"q is {q.dtype} on {q.device}, k {k.dtype} on {k.device}, v {v.dtype} on {v.device}, rows on "
            f"{rows.device}; bring them to one dtype and device"
        )
    if k.shape[3] != q.shape[2] or k.shape[2] == 0 or q.shape[1] % k.shape[2]:
        raise ShapeError(
            f"q has {q.shape[1]} heads of {q.shape[2]}, k {k.shape[2]} of {k.shape[3]}; expected one head dim, and a "
            "whole number of query heads to each kv head"
        )
    if not q.is_floating_point():
        raise ShapeError(f"q is {q.dtype}; expected floats")
    if rows.dtype not in (torch.int64, torch.int32) or list(rows.shape) not in ([len(q), 1], [len(q), k.shape[2]]):
        raise ShapeError(
            f"rows is {rows.dtype} {list(rows.shape)}; expected int64 or int32 [B, 1] = {[len(q), 1]} or [B, G] = "
            f"{[len(q), k.shape[2]]}: the position of the new token, -1 where it stays local"
        )
    if page_table is None and len(k) != len(q):
        raise ShapeError(
            f"the cache holds {len(k)} sequences and q has {len(q)}; pass page_table= if k and v are pages"
        )
    if page_table is not None:
        good = page_table.dtype == torch.int32 and page_table.dim() == 2 and len(page_table) == len(q)
        if not good or page_table.device != q.device or (page_table.shape[1] > 1 and page_table.stride(1) != 1):
            raise ShapeError(
                f"page_table is {page_table.dtype} {list(page_table.shape)} on {page_table.device}; expected int32 "
                f"[B, pages of a sequence] with B = {len(q)} on {q.device}, rows contiguous"
            )
    _check_values(k, rows, page_table)


def _check_values(k: Tensor, rows: Tensor, page_table: Tensor | None) -> None:
    """Values are read on the CPU only: elsewhere that would wait for the device."""
    if rows.device.type != "cpu" or not rows.numel():
        return
    room = k.shape[1] if page_table is None else k.shape[1] * page_table.shape[1]
    low, high = torch.aminmax(rows)
    if low < -1 or high >= room:
        raise ShapeError(f"rows holds {int(low)}..{int(high)}; expected -1 (local) or a position 0..{room - 1}")
    if page_table is None:
        return
    used = torch.arange(page_table.shape[1]) * k.shape[1] <= rows.max(1, keepdim=True).values
    if bool(((page_table < 0) | (page_table >= len(k)))[used].any()):
        raise ShapeError(f"page_table names a page outside 0..{len(k) - 1} for a position that is read; map it first")


def _check_options(
    q: Tensor, k: Tensor, page_table: Tensor | None, total_decay: Tensor | None, window: int | None, sinks: int,
    directions: Tensor | None, suppress: Tensor | None,
) -> None:  # fmt: skip
    if (window is not None and window < 1) or sinks < 0 or (sinks and window is None):
        raise ConfigError(
            f"window={window}, sinks={sinks}; expected window=None or >= 1, and sinks >= 0 only with a window"
        )
    room = k.shape[1] if page_table is None else k.shape[1] * page_table.shape[1]
    if total_decay is not None:
        shape = list(total_decay.shape)
        good = total_decay.dtype in (torch.float32, torch.float64) and total_decay.device == q.device
        if not good or shape != [len(q), room, q.shape[1]] or total_decay.stride(2) != 1:
            raise ShapeError(
                f"total_decay is {total_decay.dtype} {shape} on {total_decay.device}; expected float32 or float64 "
                f"[B, S, H] = {[len(q), room, q.shape[1]]} on {q.device}, contiguous heads"
            )
    if (directions is None) != (suppress is None):
        raise ConfigError("directions and suppress belong together; pass both or neither")
    if directions is None or suppress is None:
        return
    n_heads, dim = q.shape[1:]
    wrong = directions.dim() != 3 or directions.shape[::2] != (n_heads, dim)
    if wrong or list(suppress.shape) != [len(q), n_heads, directions.shape[1]] or directions.device != q.device:
        raise ShapeError(
            f"directions {list(directions.shape)}, suppress {list(suppress.shape)}; expected [H, K, D] and [B, H, K] "
            f"with H = {n_heads}, D = {dim}, B = {len(q)} on {q.device}"
        )
