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
from turnout.ops.attend.reference import per_head, suppress_directions, total_decay

# Torch's CPU kernel works on tiles of 32 or 64 rows (below 768 rows) and 512 keys. A chunk of routed rows is padded to
# whole tiles, so that the same products are computed in the same order whatever is routed later: an earlier row's
# output does not change by one bit when later routes change (tested; torch promises nothing of the kind).
ROW_TILE = 32
KEY_TILE = 512
# Query rows in one chunk, at least and at most; between them a chunk spans one key tile. Wide rows are worth a call for
# fewer of them, which read fewer keys. On a GPU chunks with keys of their own exist only where the rows are fixed, and
# launches count.
CPU_CHUNK, WIDE_CHUNK, WIDE = (128, 512), 64, 256
GPU_CHUNK = 512
# One position of distance in a mask; a power of two, so that products with positions are exact.
HIDDEN = 2.0**100
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
    if call.q.numel() == 0 or call.k.numel() == 0:
        out = torch.zeros_like(call.q) + 0 * (call.q.sum() + call.k.sum() + call.v.sum())
    elif call.rows is None or q.device.type == "cpu":
        out = _chunked(q, k, rows, scale, call)
    elif call.window is None and q.shape[1] >= DENSE_FROM[q.dtype] * k.shape[1]:
        out = _scattered(q, k, rows, scale, call)
    else:
        out = _masked(q, k, rows, scale, call)
    return suppress_directions(out, call.directions, call.suppress).to(call.q.dtype)


def scattered_attend(call: Call) -> Tensor:
    """Dense causal attention with every query at its own position, for calls whose rows are nearly all; no options.

    Returns:
        o: like q, [B, R, H, D].
    Cost: that of dense attention, O(B·H·S²·D), and one copy of q and o.
    """
    if call.q.numel() == 0 or call.k.numel() == 0:
        return gathered_attend(call)
    out = _scattered(call.q, call.k, call.positions(), call.scale, call)
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


def _mask(rows: Tensor, keys: Tensor, dtype: torch.dtype, call: Call) -> Tensor:
    """What to add to the scores, rows [B, L, P], keys [n] → [B, L, P, n]: 0 where a row sees a key, ≤ −1e30 elsewhere.

    mask = min(0, row − key) · HIDDEN, which is two passes in place and five times faster on the CPU than comparing and
    selecting. An empty slot sees the first key, so that no softmax is empty. float32 holds every position below 2^24.
    """
    number = torch.float64 if dtype == torch.float64 else torch.float32
    place = keys.to(number) * HIDDEN
    row = torch.where(rows < 0, place[:1], rows.to(number) * HIDDEN)[..., None]
    mask = (row - place).clamp_(max=0)
    if call.window is not None:
        too_far = (place + (call.window - 1) * HIDDEN - row).clamp_(max=0)
        mask += too_far.masked_fill_(keys < call.sinks, 0)
    return mask.to(dtype)


def _blank_empty(out: Tensor, rows: Tensor, call: Call) -> Tensor:
    """Output exactly 0, and gradient 0, where the slot is empty: out [B, R, H, D], rows [B, L, R]."""
    return out.masked_fill((per_head(call, rows) < 0).transpose(1, 2)[..., None], 0.0)


def _chunked(q: Tensor, k: Tensor, rows: Tensor, scale: float, call: Call) -> Tensor:
    """Each chunk of rows against the keys from its first window (or 0) to its last row."""
    n_rows, n_groups, size = q.shape[1], k.shape[2], call.group_size
    row_tile, key_tile = _tiles(call)
    # At least one row, so that the output hangs on q, k and v even when nothing is routed.
    used = n_rows if call.rows is None else max(int((rows >= 0).sum(-1).max()), 1)
    used = -(-used // row_tile) * row_tile
    extra = max(used - n_rows, 0)
    q, rows_used = pad(q, (0, 0, 0, 0, 0, extra))[:, :used], pad(rows, (0, extra), value=-1)[..., :used]
    chunk = _chunk_rows(used, call)
    outs = []
    for start in range(0, used, chunk):
        part = rows_used[..., start : start + chunk]
        first, last = _ends(part, start, call)
        keys, kc, vc = _seen(k, call.v, first, last, key_tile, call)
        mask = _mask(part.repeat_interleave(size, dim=-1), keys, q.dtype, call)
        packed = _pack(q[:, start : start + chunk], n_groups)
        outs.append(_unpack(scaled_dot_product_attention(packed, kc, vc, attn_mask=mask, scale=scale), size))
    out = torch.cat(outs, 1)[:, :n_rows]
    out = pad(out, (0, 0, 0, 0, 0, n_rows - out.shape[1]))
    return out if call.rows is None else _blank_empty(out, rows, call)


def _tiles(call: Call) -> tuple[int, int]:
    """Rows and keys to pad to: 1 where nothing can be routed later, that is for fixed rows and in a decode step."""
    if call.rows is None or bool(((call.rows < 0) | (call.rows == call.k.shape[1] - 1)).all()):
        return 1, 1
    return _row_tile(call), KEY_TILE


def _row_tile(call: Call) -> int:
    """Rows of a whole tile of torch's kernel, in which the heads of a kv head are rows too."""
    return ROW_TILE // call.group_size if ROW_TILE % call.group_size == 0 else ROW_TILE


def _chunk_rows(used: int, call: Call) -> int:
    """Query rows in one chunk of `_chunked`, all heads of a kv head counted: a whole number of row tiles."""
    least, most = CPU_CHUNK
    least = WIDE_CHUNK if call.q.shape[3] >= WIDE else least
    n_packed, row_tile = GPU_CHUNK, _row_tile(call)
    if call.q.device.type == "cpu":
        n_packed = least if call.window is not None else min(max(KEY_TILE * used // call.k.shape[1], least), most)
    return max(n_packed // call.group_size // row_tile, 1) * row_tile


def _ends(part: Tensor, start: int, call: Call) -> tuple[int, int]:
    """First and last position in a chunk [B, L, P] that starts at slot `start`; fixed rows are known without a look."""
    if call.rows is None:
        first = call.k.shape[1] - call.q.shape[1] + start
        return first, first + part.shape[-1] - 1
    last = max(int(part.max()), 0)
    return int(torch.where(part < 0, last, part).min()), last


def _seen(k: Tensor, v: Tensor, first: int, last: int, key_tile: int, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Key positions [n] that rows first..last can see, and k, v there as [B, G, n, D]."""
    start = 0 if call.window is None else max(0, first - call.window + 1)
    n_sinks = min(call.sinks, start)
    stop = min(k.shape[1], start - (start - last - 1) // key_tile * key_tile)
    keys = torch.arange(start, stop, device=k.device)
    kc, vc = k[:, start:stop], v[:, start:stop]
    if n_sinks:
        keys = torch.cat([torch.arange(n_sinks, device=k.device), keys])
        kc, vc = torch.cat([k[:, :n_sinks], kc], 1), torch.cat([v[:, :n_sinks], vc], 1)
    return keys, kc.transpose(1, 2), vc.transpose(1, 2)


def _masked(q: Tensor, k: Tensor, rows: Tensor, scale: float, call: Call) -> Tensor:
    """All keys for every chunk, because reading where its rows end would synchronise the device."""
    n_groups, n_keys, size = k.shape[2], k.shape[1], call.group_size
    keys = torch.arange(n_keys, device=k.device)
    chunk = max(1, MASK_BYTES // (rows.shape[0] * rows.shape[1] * size * n_keys * q.element_size()))
    kc, vc = k.transpose(1, 2), call.v.transpose(1, 2)
    outs = []
    for start in range(0, q.shape[1], chunk):
        mask = _mask(rows[..., start : start + chunk].repeat_interleave(size, dim=-1), keys, q.dtype, call)
        packed = _pack(q[:, start : start + chunk], n_groups)
        outs.append(_unpack(scaled_dot_product_attention(packed, kc, vc, attn_mask=mask, scale=scale), size))
    return _blank_empty(torch.cat(outs, 1), rows, call)


def _scattered(q: Tensor, k: Tensor, rows: Tensor, scale: float, call: Call) -> Tensor:
    """Dense causal attention with every query at its own position.

    Whole rows are copied by index, which is several times faster than scattering elements. A position without a query
    gets the one before it: nobody reads its output, so its gradient is 0 whatever it computes.
    """
    n_batch, n_lists, n_rows = rows.shape
    n_keys, rows = k.shape[1], rows.flatten(0, 1)
    taken = rows.new_zeros(rows.shape[0], n_keys + 1).scatter(1, torch.where(rows < 0, n_keys, rows), 1)
    slot = (taken[:, :n_keys].cumsum(1) - 1).clamp_min(0)

    def pick(x: Tensor, index: Tensor) -> Tensor:
        """x [B, n, H, D] at index [B·L, m] → [B, m, H, D]."""
        x = x.unflatten(2, (n_lists, -1)).transpose(1, 2)
        base = torch.arange(index.shape[0], device=x.device)[:, None] * x.shape[2]
        picked = x.reshape(-1, x.shape[3] * x.shape[4]).index_select(0, (index + base).flatten())
        return picked.view(n_batch, n_lists, index.shape[1], *x.shape[3:]).transpose(1, 2).flatten(2, 3)

    lists = rows.view(n_batch, n_lists, n_rows)
    out = scaled_dot_product_attention(
        pick(_blank_empty(q, lists, call), slot).transpose(1, 2),
        k.transpose(1, 2),
        call.v.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=call.group_size > 1,
    ).transpose(1, 2)
    return _blank_empty(pick(out, rows.clamp_min(0)), lists, call)
