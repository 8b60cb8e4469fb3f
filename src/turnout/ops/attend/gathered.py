"""The fast path of `attend`: chunks of the rows taken, each against the keys at or before its last row.

No N×N mask exists. On the CPU every chunk is cut to the keys it can see; on other devices shapes never depend on the
values of `rows`, so that nothing synchronises and the call can be captured in a CUDA graph.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, L row lists (1 or G), P = R·H/G packed rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from turnout.ops.attend.call import Call
from turnout.ops.attend.reference import suppress_directions, total_decay

# Query rows in one chunk on the CPU. Measured in README.md; torch's CPU kernel keeps one inner tile size below 192.
CPU_CHUNK = 128
# Torch's CPU kernel works on tiles of 32 rows (below 192 rows) and 512 keys. A chunk of routed rows is padded to whole
# tiles, so that the same tiles are computed in the same order whatever is routed later: an earlier row's output does
# not change by one bit when later routes change.
ROW_TILE = 32
KEY_TILE = 512
# A chunk's mask on a device without synchronisation stays under this many bytes.
MASK_BYTES = 256 * 2**20
# Fraction of all rows from which dense attention with the queries scattered into place is faster on a GPU (H200).
DENSE_FROM = {torch.bfloat16: 0.3, torch.float16: 0.3, torch.float32: 0.5, torch.float64: 0.5}


def gathered_attend(call: Call) -> Tensor:
    """Attention of the rows taken; same meaning as `reference_attend` without `keys`.

    Returns:
        o: like q, [B, R, H, D].
    Cost: CPU O(Σ_chunks rows·(last row + 1)·D) per head; elsewhere O(B·H·R·S·D). Memory O(chunk · S).
    """
    rows = call.positions()
    q, k, scale = fold_decay(call) if call.log_decay is not None else (call.q, call.k, call.scale)
    if call.q.numel() == 0 or call.k.shape[1] == 0:
        out = torch.zeros_like(call.q) + 0 * (call.q.sum() + call.k.sum() + call.v.sum())
    elif q.device.type == "cpu":
        out = _cpu(q, k, call.v, rows, scale, call=call)
    elif call.rows is not None and call.window is None and q.shape[1] >= DENSE_FROM[q.dtype] * k.shape[1]:
        out = _scattered(q, k, call.v, rows, scale)
    else:
        out = _masked(q, k, call.v, rows, scale, call.window, call.sinks)
    return suppress_directions(out, call.directions, call.suppress).to(call.q.dtype)


def fold_decay(call: Call) -> tuple[Tensor, Tensor, float]:
    """Turn the decay into extra coordinates of q and k, so that any attention kernel computes it, with its gradient.

    softmax_s(scale·<q_t, k_s> + c_t − c_s) = softmax_s(<[scale·q_t, 1], [k_s, −c_s]>): c_t is one number per row and
    cancels. Heads that share a kv head get one coordinate each, chosen by a one-hot vector in q. In bfloat16 −c_s is
    the sum of three coordinates, which carries 24 bits.
    """
    n_batch, n_keys, n_groups, _ = call.k.shape
    size, dtype = call.group_size, call.k.dtype
    total = -total_decay(call)
    parts = []
    for _ in range(3 if dtype == torch.bfloat16 else 1):
        parts.append(total.to(dtype))
        total = total - parts[-1].to(total.dtype)
    columns = torch.stack([part.view(n_batch, n_keys, n_groups, size) for part in parts], -1).flatten(-2)
    width = call.k.shape[-1] + columns.shape[-1]
    k = pad(torch.cat([call.k, columns], -1), (0, -width % 8))
    chosen = torch.eye(size, dtype=dtype, device=k.device).repeat_interleave(len(parts), dim=1)
    chosen = chosen.repeat(n_groups, 1).expand(*call.q.shape[:3], -1)
    q = pad(torch.cat([call.q * call.scale, chosen], -1), (0, -width % 8))
    return q, k, 1.0


def _pack(q: Tensor, n_groups: int) -> Tensor:
    """[B, R, H, D] → [B, G, R·H/G, D]: the heads that share a kv head become rows of it."""
    return q.unflatten(2, (n_groups, -1)).transpose(1, 2).flatten(2, 3)


def _unpack(out: Tensor, group_size: int) -> Tensor:
    """[B, G, R·H/G, D] → [B, R, H, D]."""
    return out.unflatten(2, (-1, group_size)).transpose(1, 2).flatten(2, 3)


def _visible(rows: Tensor, keys: Tensor, window: int | None, sinks: int) -> Tensor:
    """rows [B, L, P], keys [n] → bool [B, L, P, n]. An empty slot sees the first key, so that no softmax is empty."""
    row = torch.where(rows < 0, keys[:1], rows)[..., None]
    visible = keys <= row
    if window is not None:
        visible = visible & ((keys > row - window) | (keys < sinks))
    return visible


def _blank_empty(out: Tensor, rows: Tensor, n_groups: int) -> Tensor:
    """Output exactly 0, and gradient 0, where the slot is empty: out [B, R, H, D], rows [B, L, R]."""
    empty = (rows < 0).transpose(1, 2)
    if empty.shape[2] == n_groups > 1:
        empty = empty.repeat_interleave(out.shape[2] // n_groups, dim=2)
    return out.masked_fill(empty[..., None], 0.0)


def _cpu(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, *, call: Call) -> Tensor:
    n_rows, n_groups, size = q.shape[1], k.shape[2], call.group_size
    row_tile, key_tile = _tiles(call)
    # At least one row, so that the output hangs on q, k and v even when nothing is routed.
    used = max(int((rows >= 0).sum(-1).max()), 1)
    used = -(-used // row_tile) * row_tile
    extra = max(used - n_rows, 0)
    q, rows_used = pad(q, (0, 0, 0, 0, 0, extra))[:, :used], pad(rows, (0, extra), value=-1)[..., :used]
    chunk = max(CPU_CHUNK // size // ROW_TILE, 1) * ROW_TILE
    outs = []
    for start in range(0, used, chunk):
        part = rows_used[..., start : start + chunk]
        keys, kc, vc = _seen(k, v, part, key_tile, call)
        visible = _visible(part.repeat_interleave(size, dim=-1), keys, call.window, call.sinks)
        out = scaled_dot_product_attention(
            _pack(q[:, start : start + chunk], n_groups), kc, vc, attn_mask=visible, scale=scale
        )
        outs.append(_unpack(out, size))
    out = torch.cat(outs, 1)[:, :n_rows]
    out = pad(out, (0, 0, 0, 0, 0, n_rows - out.shape[1]))
    return _blank_empty(out, rows, n_groups)


def _tiles(call: Call) -> tuple[int, int]:
    """Rows and keys to pad to: 1 where nothing can be routed later, that is for fixed rows and in a decode step."""
    if call.rows is None or bool(((call.rows < 0) | (call.rows == call.k.shape[1] - 1)).all()):
        return 1, 1
    return ROW_TILE, KEY_TILE


def _seen(k: Tensor, v: Tensor, part: Tensor, key_tile: int, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Key positions [n] that a chunk of rows can see, and k, v there as [B, G, n, D]."""
    n_keys, n_sinks = k.shape[1], 0
    start, stop = 0, max(int(part.max()) + 1, 1)
    if call.window is not None:
        first = int(torch.where(part < 0, stop - 1, part).min())
        start = max(0, first - call.window + 1)
        n_sinks = min(call.sinks, start)
    stop = min(n_keys, start - (start - stop) // key_tile * key_tile)
    keys = torch.arange(start, stop, device=k.device)
    kc, vc = k[:, start:stop], v[:, start:stop]
    if n_sinks:
        keys = torch.cat([torch.arange(n_sinks, device=k.device), keys])
        kc, vc = torch.cat([k[:, :n_sinks], kc], 1), torch.cat([v[:, :n_sinks], vc], 1)
    return keys, kc.transpose(1, 2), vc.transpose(1, 2)


def _masked(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, window: int | None, sinks: int) -> Tensor:
    n_batch, n_rows, n_groups = q.shape[0], q.shape[1], k.shape[2]
    size, n_keys = q.shape[2] // n_groups, k.shape[1]
    keys = torch.arange(n_keys, device=k.device)
    chunk = max(1, MASK_BYTES // (n_batch * rows.shape[1] * size * n_keys * q.element_size()))
    outs = []
    for start in range(0, n_rows, chunk):
        part = rows[..., start : start + chunk]
        visible = _visible(part.repeat_interleave(size, dim=-1), keys, window, sinks)
        out = scaled_dot_product_attention(
            _pack(q[:, start : start + chunk], n_groups),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=visible,
            scale=scale,
        )
        outs.append(_unpack(out, size))
    return _blank_empty(torch.cat(outs, 1), rows, n_groups)


def _scattered(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Dense causal attention with every query at its own position; empty slots add nothing and read row 0."""
    n_groups, n_heads = k.shape[2], q.shape[2]
    place = rows.transpose(1, 2)
    place = (
        place.repeat_interleave(n_heads // place.shape[2], dim=2)
        if place.shape[2] > 1
        else place.expand(-1, -1, n_heads)
    )
    index = place.clamp_min(0)[..., None]
    q = q.masked_fill(place[..., None] < 0, 0.0)
    whole = q.new_zeros(q.shape[0], k.shape[1], n_heads, q.shape[3])
    whole = whole.scatter_add(1, index.expand_as(q), q)
    out = scaled_dot_product_attention(
        whole.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=n_heads != n_groups,
    ).transpose(1, 2)
    out = out.gather(1, index.expand(-1, -1, -1, v.shape[3]))
    return out.masked_fill(place[..., None] < 0, 0.0)
