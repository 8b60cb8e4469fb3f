"""Executes a `Reach`: the operator where it has the option, torch around it where it has not.

B batch, R query rows, S keys, H query heads, G kv heads, D head dim, L row lists (1 or G).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from turnout.errors import UnsupportedError
from turnout.layers.chosen import keys_of_buckets, near_and_chosen
from turnout.layers.dilation import dilated
from turnout.ops.attend import attend
from turnout.ops.attend.decode import decode_attend
from turnout.ops.attend.reference import compute_dtype, sum_decay, suppress_directions
from turnout.ops.choose import best_blocks
from turnout.ops.shorten import shorten
from turnout.routers.direction import Cut
from turnout.routers.pattern.decay import log_threshold
from turnout.routers.pattern.reach import Blend, BlockLists, Blocks, Buckets, Prune, Reach, Routed, TopBlocks

# Score of a key that is not read: its weight is exactly 0 in every dtype, and no softmax is over nothing.
HIDDEN = -3e4
# Rows of one chunk where keys out of reach are left out, at least.
LEAST_CHUNK = 128
# Log weights of a sequence that are held at a time, at most: heads x rows x keys.
MOST_WEIGHTS = 2**28


def read(
    q: Tensor, k: Tensor, v: Tensor, reach: Reach, *, rows: Tensor | None = None, impl: str = "auto",
    cut: Cut | None = None,
) -> Tensor:  # fmt: skip
    """Attention of the query rows as far as `reach` lets them read, without the directions that `cut` removes.

    Args:
        q: [B, R, H, D]; k, v: [B, S, G, D].
        rows: as in `attend`; None = the last R positions.
        cut: r is [B, R, H, K]; removed in the operator's epilogue where the operator runs, else behind it.
        impl: as in `attend`; bias, contextual positions and dilation have torch implementations only.
    Returns:
        o: like q; exactly 0 in an empty slot.
    Raises:
        UnsupportedError: `impl` names an implementation that does not do this.
    """
    if not reach.in_operator:
        o = _around(q, k, v, reach, rows, impl)
        return o if cut is None else suppress_directions(o, *cut)
    options: dict[str, Any] = {"log_decay": reach.log_decay, "window": reach.window, "sinks": reach.sinks}
    if cut is not None:
        options |= {"directions": cut.directions, "suppress": cut.amount}
    if reach.prune is not None and reach.log_decay is not None:
        q, k = shorten(q, reach.prune.cap), shorten(k, reach.prune.cap)
        known = reach.prune.starts if rows is None else None
        if known is None or known.shape[1:] != (k.shape[2], q.shape[1]):
            known = first_keys(reach.log_decay, positions(q, k, rows), k.shape[2], reach.prune, q.shape[-1])
        options["starts"] = known
    if reach.starts is not None:
        options["starts"] = reach.starts if rows is None else _at_rows(reach.starts, rows)
    if reach.blocks is not None:
        options |= _key_lists(q, k, rows, reach.blocks)
    if reach.index is not None:
        return _indexed(q, k, v, reach.index, rows, impl, options)
    return attend(q, k, v, rows=rows, impl=impl, **options)


def _indexed(
    q: Tensor, k: Tensor, v: Tensor, index: tuple[Tensor, Tensor], rows: Tensor | None, impl: str, options: Any
) -> Tensor:
    """Scores of an index beside those of the heads, as coordinates of q and k: any implementation computes them."""
    cut = options.pop("directions", None), options.pop("suppress", None)
    asks, holds = index
    asks = asks[:, :, None] if rows is None else _of_rows(asks[:, :, None], q, k, rows)
    scale, more = q.shape[-1] ** -0.5, asks.shape[-1]
    asks = (asks / scale).repeat_interleave(q.shape[2] // asks.shape[2], 2)
    wide_q = torch.cat([q, asks.to(q.dtype)], -1)
    wide_k = torch.cat([k, holds[:, :, None].expand(-1, -1, k.shape[2], -1).to(k.dtype)], -1)
    o = attend(wide_q, wide_k, pad(v, (0, more)), rows=rows, scale=scale, impl=impl, **options)[..., :-more]
    return suppress_directions(o, *cut)


def _of_rows(of_last: Tensor, q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """What the last T positions have, [B or 1, T, 1 or G, K], at the positions `rows`: [B, R, 1 or G, K]."""
    at = (positions(q, k, rows) - (k.shape[1] - of_last.shape[1])).clamp(min=0).transpose(1, 2)
    lists = max(at.shape[2], of_last.shape[2])
    of_last = of_last.expand(len(at), -1, lists, -1)
    return of_last.gather(1, at[..., None].expand(-1, -1, lists, of_last.shape[-1]))


def _at_rows(starts: Tensor, rows: Tensor) -> Tensor:
    """`starts` [B, S] at the positions `rows`, [B, R] or [B, G, R]."""
    at = rows.clamp(min=0)
    return starts.gather(1, at.flatten(1)).view_as(rows)


def _around(q: Tensor, k: Tensor, v: Tensor, reach: Reach, rows: Tensor | None, impl: str) -> Tensor:
    """What the operator has no option for."""
    if reach.parts:
        return _parts(q, k, v, reach, rows, impl)
    if reach.blend is not None:
        return _blended(q, k, v, reach.blend, rows, impl)
    if reach.routed is not None:
        return _routed(q, k, v, reach.routed, rows, impl)
    if impl not in ("auto", "reference"):
        raise UnsupportedError(
            f"impl={impl!r} has no bias, contextual positions, dilation or single keys; use impl='auto'"
        )
    if reach.chosen is not None:
        return _chosen(q, k, v, reach, rows, impl)
    if reach.dilation is not None:
        return _blank(dilated(q, k, v, reach.dilation, positions(q, k, rows), whole=rows is None), rows)
    if rows is None and reach.window is not None and not reach.sinks and reach.contextual is None:
        return _trimmed(q, k, v, reach, max(reach.window, LEAST_CHUNK))
    if rows is None and q.shape[1] * q.shape[2] * k.shape[1] > MOST_WEIGHTS:
        return _trimmed(q, k, v, reach, max(LEAST_CHUNK, MOST_WEIGHTS // (q.shape[2] * k.shape[1])))
    return _blank(_biased(q, k, v, reach, positions(q, k, rows)), rows)


def step(q: Tensor, k: Tensor, v: Tensor, reach: Reach, rows: Tensor, *, impl: str, cut: Cut | None = None) -> Tensor:
    """One new token a sequence against a whole cache: q [B, H, D], rows [B, L], r of `cut` [B, H, K]; see
    `decode_attend`."""
    if not reach.stepwise:
        raise UnsupportedError(
            "one step of this pattern hangs on the host, so it cannot be replayed; call the model with state= instead "
            "of DecodeStep"
        )
    if not reach.parts:
        total = None if reach.log_decay is None else sum_decay(reach.log_decay).contiguous()
        directions, amount = (None, None) if cut is None else cut
        return decode_attend(
            q, k, v, rows, total_decay=total, window=reach.window, sinks=reach.sinks, directions=directions,
            suppress=amount, impl=impl,
        )  # fmt: skip
    outs, size = [], q.shape[1] // k.shape[2]
    first = 0
    for n, part in reach.parts:
        heads, groups = slice(first, first + n), slice(first // size, (first + n) // size)
        mine = rows if rows.shape[1] == 1 else rows[:, groups]
        outs.append(step(q[:, heads], k[:, :, groups], v[:, :, groups], part, mine, impl=impl))
        first += n
    o = torch.cat(outs, 1)
    return o if cut is None else suppress_directions(o[:, None], cut.directions, cut.amount[:, None])[:, 0]


def positions(q: Tensor, k: Tensor, rows: Tensor | None) -> Tensor:
    """Position of every row, int64 [B or 1, L, R]; -1 = empty slot."""
    if rows is None:
        return torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)[None, None]
    return rows[:, None] if rows.dim() == 2 else rows


def first_keys(log_decay: Tensor, rows: Tensor, groups: int, prune: Prune, head_dim: int) -> Tensor:
    """First key that some head of a kv head still reads: int64 [B, L or G, R], never falling within a list.

    start_t = min j with sum_{j<i<=t} log_decay_i >= delta; the decay falls with distance, so what is skipped is the
    beginning of the sequence. A decay that is the same at every step says how far that is without a sum.
    """
    if prune.spans is not None:
        spans = prune.spans if len(prune.spans) == groups else prune.spans.unflatten(0, (groups, -1)).amax(1)
        return (rows - spans[:, None]).clamp(min=0).expand(len(log_decay), -1, -1)
    grown = -log_decay.detach().double().transpose(1, 2).contiguous().cumsum(-1)
    n_batch, heads, _ = grown.shape
    at = rows.expand(n_batch, -1, -1).repeat_interleave(heads // rows.shape[1], 1).clamp(min=0)
    least = grown.gather(2, at) + log_threshold(prune, head_dim**-0.5)
    starts = torch.searchsorted(grown, least.contiguous())
    return starts.unflatten(1, (groups, -1)).amin(2)


def _key_lists(q: Tensor, k: Tensor, rows: Tensor | None, blocks: Blocks | TopBlocks | BlockLists) -> dict[str, Any]:
    """`keys`, `key_block`, `row_block` of `attend`: one list for a block of rows where rows are all, else one a row."""
    n_rows, n_keys, groups = q.shape[1], k.shape[1], k.shape[2]
    whole = rows is None and n_rows == n_keys
    shared = (blocks.size if isinstance(blocks, Blocks) else getattr(blocks, "share", 1)) if whole else 1
    at = positions(q, k, rows).transpose(1, 2)
    at = at[:, ::shared]
    own = (at // blocks.size)[..., None]
    near = own - torch.arange(blocks.near + 1, device=q.device)
    if isinstance(blocks, Blocks):
        far = torch.arange(0, -(-n_keys // blocks.size), blocks.stride, device=q.device).expand(*own.shape[:3], -1)
        far = torch.where(far < own - blocks.near, far, -1)
    elif isinstance(blocks, BlockLists):
        far = blocks.lists[:, ::shared] if rows is None else _of_rows(blocks.lists, q, k, rows)
    else:
        far = _best_blocks(q, k, own[..., 0], blocks)
    lists = torch.cat([part.expand(q.shape[0], -1, groups, -1) for part in (near, far)], -1)
    lists = torch.where(at[..., None] < 0, -1, lists).clamp(min=-1)
    return {"keys": lists, "key_block": blocks.size, "row_block": shared}


@torch.no_grad()
def _best_blocks(q: Tensor, k: Tensor, own: Tensor, blocks: TopBlocks) -> Tensor:
    """For each row and kv head the whole blocks, before its own and those near it, that fit best: [B, R, G, K]."""
    groups = k.shape[2]
    whole = k.shape[1] // blocks.size
    number = compute_dtype(q.dtype)
    means = k[:, : whole * blocks.size].unflatten(1, (whole, blocks.size)).to(number).mean(2)
    asked = q.unflatten(2, (groups, -1)).to(number).sum(3)
    # Sums in full precision, and their products in that of the attention they stand for.
    return best_blocks(asked.to(q.dtype), means.to(q.dtype), own - blocks.near, blocks.keep)


def _chosen(q: Tensor, k: Tensor, v: Tensor, reach: Reach, rows: Tensor | None, impl: str) -> Tensor:
    """A window and single keys, found by the tokens or by the buckets of queries and keys."""
    assert reach.chosen is not None and reach.window is not None
    if isinstance(reach.chosen, Buckets):
        keys = keys_of_buckets(q, k, reach.chosen, reach.window, positions(q, k, rows))
    else:
        keys = reach.chosen if rows is None else _of_rows(reach.chosen, q, k, rows)
    at = None if rows is None else positions(q, k, rows)
    return near_and_chosen(q, k, v, keys, reach.window, at, mark=reach.mark, impl=impl)


def _parts(q: Tensor, k: Tensor, v: Tensor, reach: Reach, rows: Tensor | None, impl: str) -> Tensor:
    size, first, outs = q.shape[2] // k.shape[2], 0, []
    for n, part in reach.parts:
        heads = torch.arange(first // size, (first + n) // size, device=q.device)
        outs.append(_of_groups(q, k, v, part, rows, impl, heads))
        first += n
    return torch.cat(outs, 2)


def _of_groups(q: Tensor, k: Tensor, v: Tensor, reach: Reach, rows: Tensor | None, impl: str, groups: Tensor) -> Tensor:
    """`read` by some kv heads alone."""
    if rows is not None and rows.dim() == 3 and rows.shape[1] > 1:
        rows = rows[:, groups]
    q = q.unflatten(2, (k.shape[2], -1))[:, :, groups].flatten(2, 3)
    return read(q, k[:, :, groups], v[:, :, groups], reach, rows=rows, impl=impl)


def _blended(q: Tensor, k: Tensor, v: Tensor, blend: Blend, rows: Tensor | None, impl: str) -> Tensor:
    if blend.open is None:
        z = blend.z.repeat_interleave(q.shape[2] // k.shape[2])[:, None].to(q.dtype)
        far, near = (read(q, k, v, part, rows=rows, impl=impl) for part in (blend.far, blend.near))
        return z * far + (1 - z) * near
    chosen = [[g for g, is_open in enumerate(blend.open) if is_open is wanted] for wanted in (True, False)]
    order = torch.tensor(chosen[0] + chosen[1], device=q.device)
    outs = [
        _of_groups(q, k, v, part, rows, impl, torch.tensor(groups, device=q.device))
        for part, groups in zip((blend.far, blend.near), chosen, strict=True)
        if groups
    ]
    o = torch.cat(outs, 2).unflatten(2, (k.shape[2], -1))
    return o[:, :, order.argsort()].flatten(2, 3)


def _routed(q: Tensor, k: Tensor, v: Tensor, routed: Routed, rows: Tensor | None, impl: str) -> Tensor:
    """All rows read near; those taken are brought to the front, read everything, and go back to their places."""
    near = read(q, k, v, routed.near, rows=rows, impl=impl)
    at = positions(q, k, rows).expand(q.shape[0], -1, -1)
    first = k.shape[1] - routed.taken.shape[1]
    taken = routed.taken[:, None].expand(-1, at.shape[1], -1).gather(2, (at - first).clamp(min=0)) & (at >= 0)
    order = (~taken).long().argsort(dim=2, stable=True)

    def of_heads(lists: Tensor) -> Tensor:
        return lists.repeat_interleave(q.shape[2] // lists.shape[1], 1).transpose(1, 2)[..., None]

    listed = torch.where(taken, at, -1).gather(2, order)
    far = read(q.gather(1, of_heads(order).expand_as(q)), k, v, Reach(), rows=listed, impl=impl)
    far = far.gather(1, of_heads(order.argsort(dim=2)).expand_as(far))
    return torch.where(of_heads(taken), far, near)


def _blank(o: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return o
    lists = rows[:, None] if rows.dim() == 2 else rows
    empty = (lists < 0).repeat_interleave(o.shape[2] // lists.shape[1], 1).transpose(1, 2)
    return o.masked_fill(empty[..., None], 0.0)


def log_weights(reach: Reach, rows: Tensor, keys: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """What bias, window and sinks add to the scores, `HIDDEN` where a key is not read: [B or 1, H, R, S].

    Args:
        rows: positions [B or 1, L, R]; keys: positions [S].
    """
    row = rows.clamp(min=0)[..., None]
    visible = keys <= row
    if reach.window is not None:
        visible = visible & ((keys > row - reach.window) | (keys < reach.sinks))
    head = torch.arange(heads, device=rows.device) // (heads // rows.shape[1])
    visible = visible[:, head]
    if reach.bias is None:
        return torch.zeros(visible.shape, dtype=dtype, device=rows.device).masked_fill(~visible, HIDDEN)
    bias = reach.bias(row, keys).to(dtype)
    bias = bias[torch.arange(heads, device=rows.device), :, head].transpose(0, 1)
    return torch.where(visible, bias.clamp(min=HIDDEN), HIDDEN)


def _trimmed(q: Tensor, k: Tensor, v: Tensor, reach: Reach, chunk: int) -> Tensor:
    """The last R positions in chunks, each against the keys up to its own, in its windows where there are no sinks."""
    outs, before = [], k.shape[1] - q.shape[1]
    window = k.shape[1] if reach.window is None or reach.sinks else reach.window
    for start in range(0, q.shape[1], chunk):
        part = q[:, start : start + chunk]
        low, high = max(0, before + start - window + 1), before + start + part.shape[1]
        rows = torch.arange(before + start, high, device=q.device)[None, None]
        outs.append(_biased(part, k[:, low:high], v[:, low:high], reach, rows, low))
    return torch.cat(outs, 1)


def _biased(q: Tensor, k: Tensor, v: Tensor, reach: Reach, rows: Tensor, low: int = 0) -> Tensor:
    """Softmax attention with explicit log weights, by torch's fused kernel; the first key is at position `low`."""
    keys = torch.arange(low, low + k.shape[1], device=q.device)
    mask = log_weights(reach, rows, keys, q.shape[2], q.dtype)
    if reach.contextual is not None:
        mask = mask + _contextual(q, k, mask, reach.contextual)
    if mask.requires_grad and not (q.requires_grad or k.requires_grad or v.requires_grad):
        # torch's fused kernel keeps what the mask's gradient needs only where an input wants one too.
        q = q.detach().requires_grad_()
    size = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(size, 2).transpose(1, 2), v.repeat_interleave(size, 2).transpose(1, 2)
    return scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask).transpose(1, 2)


def _contextual(q: Tensor, k: Tensor, hidden: Tensor, table: Tensor) -> Tensor:
    """q_i · e at position p_ij = sum_{j<=l<=i} sigmoid(s_il), between its two neighbours: [B, H, R, S] (CoPE)."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    number = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        score = torch.einsum("brhd,bshd->bhrs", q.to(number), k.to(number)) * q.shape[-1] ** -0.5
        gate = score.sigmoid().masked_fill(hidden == HIDDEN, 0.0)
        place = gate.flip(-1).cumsum(-1).flip(-1).clamp(max=table.shape[1] - 1)
        known = torch.einsum("brhd,hpd->bhrp", q.to(number), table.to(number))
        low = place.detach().floor().long()
        high = (low + 1).clamp(max=table.shape[1] - 1)
        share = place - low
        return (known.gather(-1, low) * (1 - share) + known.gather(-1, high) * share).to(q.dtype)
