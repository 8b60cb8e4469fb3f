"""The specification of `attend`: torch only, one einsum an equation, every option, autograd, float64.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, K keys kept (or directions) per query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.ops.attend.call import Call


def reference_attend(call: Call) -> Tensor:
    """Attention of the rows taken, with the whole score matrix in memory.

        s[t, j] = scale · <q_t, k_j> + Σ_{j<i≤t} log_decay[i]
        o_t     = Σ_j softmax_j(s[t, j] over visible j) v_j         (0 if nothing is visible)
        o'_t    = o_t − Σ_k r_k <o_t, d_k> d_k

    Half precision is computed in float32 and rounded once at the end.

    Returns:
        o: like q, [B, R, H, D].
    Cost: O(B·H·R·S·D) multiply-adds and O(B·H·R·S) memory.
    """
    dtype = compute_dtype(call.q.dtype)
    with torch.autocast(call.q.device.type, enabled=False):
        q, k, v = call.q.to(dtype), call.k.to(dtype), call.v.to(dtype)
        k = k.repeat_interleave(call.group_size, dim=2)
        v = v.repeat_interleave(call.group_size, dim=2)
        score = torch.einsum("brhd,bshd->bhrs", q, k) * call.scale
        if call.log_decay is not None:
            score = score + decay_bias(call)
        visible = visible_keys(call)
        score = score.masked_fill(~visible, torch.finfo(dtype).min)
        # A row that sees nothing has a uniform softmax over masked keys: zero it here, so that no NaN ever exists.
        weight = score.softmax(-1).masked_fill(~visible, 0.0)
        out = torch.einsum("bhrs,bshd->brhd", weight, v)
        return suppress_directions(out, call.directions, call.suppress).to(call.q.dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_head(call: Call, rows: Tensor) -> Tensor:
    """Positions [B, 1 or G, R] → one list for each query head, [B, H, R]."""
    n_batch, n_lists, n_rows = rows.shape
    n_heads = call.q.shape[2]
    return rows.repeat_interleave(n_heads // n_lists, dim=1) if n_lists > 1 else rows.expand(n_batch, n_heads, n_rows)


def visible_keys(call: Call) -> Tensor:
    """Which keys each row may attend: causal ∩ its own sequence ∩ (window ∪ sinks) ∩ keys, bool [B, H, R, S]."""
    n_keys = call.k.shape[1]
    row = per_head(call, call.positions())[..., None]
    key = torch.arange(n_keys, device=call.q.device)
    visible = key <= row
    start = 0 if call.starts is None else per_head(call, call.starts)[..., None]
    if call.starts is not None:
        visible = visible & (key >= start)
    if call.window is not None:
        visible = visible & ((key > row - call.window) | (key < start + call.sinks))
    if call.keys is not None:
        visible = visible & _chosen_keys(call, call.keys).repeat_interleave(call.group_size, dim=1)
    return visible


def _chosen_keys(call: Call, keys: Tensor) -> Tensor:
    """Block indices [B, R / row_block, G, K] → bool [B, G, R, S]; empty slots write into a spare column, cut off."""
    n_rows, n_keys = call.q.shape[1], call.k.shape[1]
    n_blocks = -(-n_keys // call.key_block)
    slot = torch.where(keys < 0, n_blocks, keys).transpose(1, 2)
    chosen = torch.zeros(*slot.shape[:3], n_blocks + 1, dtype=torch.bool, device=keys.device)
    chosen = chosen.scatter(-1, slot, True)[..., :n_blocks]
    chosen = chosen.repeat_interleave(call.key_block, dim=3)[..., :n_keys]
    return chosen.repeat_interleave(call.row_block, dim=2)[:, :, :n_rows]


def total_decay(call: Call) -> Tensor:
    """c[t] = Σ_{i≤t} log_decay[i] in float64, [B, S, H]; the bias of a pair is c[t] − c[s]."""
    assert call.log_decay is not None
    return sum_decay(call.log_decay)


def sum_decay(log_decay: Tensor) -> Tensor:
    """Σ_{i≤t} log_decay[i], float64 [B, S, H]; a view of [B, H, S].

    Summed along the last axis: on a GPU torch scans any other with one thread a column, tens of milliseconds at 64K.
    """
    return log_decay.double().transpose(1, 2).contiguous().cumsum(-1).transpose(1, 2)


def decay_bias(call: Call) -> Tensor:
    """bias[t, s] = Σ_{s<i≤t} log_decay[i], [B, H, R, S]; its value where s > t is masked later."""
    total = total_decay(call).transpose(1, 2)
    at_row = total.gather(2, per_head(call, call.positions()).clamp_min(0))
    return (at_row[..., None] - total[:, :, None, :]).to(compute_dtype(call.q.dtype))


def suppress_directions(out: Tensor, directions: Tensor | None, suppress: Tensor | None) -> Tensor:
    """o' = o − Σ_k r_k <o, d_k> d_k, for o [B, R, H, D], d [H, K, D], r [B, R, H, K]; the identity when absent."""
    if directions is None or suppress is None:
        return out
    directions, suppress = directions.to(out.dtype), suppress.to(out.dtype)
    along = torch.einsum("brhd,hkd->brhk", out, directions)
    return out - torch.einsum("brhk,hkd->brhd", suppress * along, directions)
