"""Rows that read lists of keys, in torch alone: the listed keys are gathered, so that no table of all pairs exists.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, F query heads of a kv head, D head dim, N lists of
M rows, K blocks of a list, P keys of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from turnout.ops.attend.call import Call
from turnout.ops.attend.reference import compute_dtype, suppress_directions

# Numbers of gathered keys that are made at a time, at most.
MOST_NUMBERS = 2**24


def why_not_listed(call: Call) -> str:
    """The first reason why `listed_attend` cannot run this call; "" if there is none."""
    if call.keys is None:
        return "no keys are listed"
    return "" if call.log_decay is None else "log_decay is given"


def listed_attend(call: Call) -> Tensor:
    """Attention of rows to the keys of their lists; same meaning as `reference_attend` with `keys`.

    Returns:
        o: like q, [B, R, H, D].
    Cost: O(B·R·H·P·D) multiply-adds; a list's keys and values are copied, B·N·G·P·D numbers each.
    """
    assert call.keys is not None
    q, n_rows, groups = call.q, call.q.shape[1], call.k.shape[2]
    if q.numel() == 0 or call.k.numel() == 0 or not call.keys.shape[3]:
        return torch.zeros_like(q) + 0 * (q.sum() + call.k.sum() + call.v.sum())
    with torch.autocast(q.device.type, enabled=False):
        dtype, more = compute_dtype(q.dtype), -n_rows % call.row_block
        heads = pad(q.to(dtype), (0, 0, 0, 0, 0, more)).unflatten(2, (groups, -1)).unflatten(1, (-1, call.row_block))
        rows = _by_list(call.positions(), call, -1)
        starts = None if call.starts is None else _by_list(call.starts, call, 0)
        k, v = (_blocks(x.to(dtype), call.key_block) for x in (call.k, call.v))
        size = call.keys.shape[3] * call.key_block * groups * q.shape[3] * q.shape[0]
        piece, outs = max(1, MOST_NUMBERS // size), []
        for first in range(0, heads.shape[1], piece):
            part = slice(first, first + piece)
            low = None if starts is None else starts[:, part]
            outs.append(_piece(heads[:, part], k, v, call.keys[:, part], rows[:, part], low, call))
        out = torch.cat(outs, 1).flatten(1, 2)[:, :n_rows].flatten(2, 3)
        return suppress_directions(out, call.directions, call.suppress).to(q.dtype)


def _piece(
    heads: Tensor, k: Tensor, v: Tensor, keys: Tensor, rows: Tensor, starts: Tensor | None, call: Call
) -> Tensor:
    """Output [B, N, M, G, F, D] of some lists: rows and starts [B, N, 1 or G, M], keys [B, N, G, K]."""
    ordered = keys.sort(-1).values
    # A block that is listed twice counts once.
    again = pad(ordered[..., 1:] == ordered[..., :-1], (1, 0))
    keys = ordered.masked_fill(again, -1)
    n_blocks = -(-call.k.shape[1] // call.key_block)
    first = torch.arange(keys.shape[0] * keys.shape[2], device=keys.device).view(-1, 1, keys.shape[2], 1) * n_blocks
    index = first + keys.clamp(min=0)
    inside = torch.arange(call.key_block, device=keys.device)
    place = torch.where(keys[..., None] < 0, -1, keys[..., None] * call.key_block + inside).flatten(3)[..., None, :]
    row = rows[..., None]
    visible = (place >= 0) & (place <= row)
    low = 0 if starts is None else starts[..., None]
    if starts is not None:
        visible &= place >= low
    if call.window is not None:
        visible &= (place > row - call.window) | (place < low + call.sinks)
    dim = heads.shape[-1]
    score = torch.einsum("bnmgfd,bngpd->bngfmp", heads, embedding(index, k).flatten(3).unflatten(3, (-1, dim)))
    visible = visible[:, :, :, None]
    score = (score * call.scale).masked_fill(~visible, torch.finfo(score.dtype).min)
    weight = score.softmax(-1).masked_fill(~visible, 0.0)
    return torch.einsum("bngfmp,bngpd->bnmgfd", weight, embedding(index, v).flatten(3).unflatten(3, (-1, dim)))


def _by_list(of_rows: Tensor, call: Call, empty: int) -> Tensor:
    """Numbers of rows [B, 1 or G, R] -> [B, N, 1 or G, M]."""
    more = -of_rows.shape[-1] % call.row_block
    return pad(of_rows, (0, more), value=empty).unflatten(-1, (-1, call.row_block)).transpose(1, 2)


def _blocks(x: Tensor, size: int) -> Tensor:
    """[B, S, G, D] -> one row a block, [B · G · blocks, size · D]."""
    x = pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size)).transpose(1, 2)
    return x.unflatten(2, (-1, size)).flatten(3).flatten(0, 2)
