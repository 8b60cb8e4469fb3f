"""Dilated segments: branches that read a grid inside a segment, merged by log-sum-exp.

B batch, R query rows, S keys, H query heads, G kv heads, D head dim, N segments, M positions of a grid, L row lists,
C calls of a kernel, K heads of one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from turnout.routers.pattern.reach import Dilation

_NOTHING = -1e30
Branches = tuple[tuple[int, int], ...]


def dilated(q: Tensor, k: Tensor, v: Tensor, dilation: Dilation, rows: Tensor, *, whole: bool) -> Tensor:
    """o = sum_k a_k o_k, a = softmax over branches of their log-sum-exp (Ding et al. 2023).

    Args:
        q: [B, R, H, D]; k, v: [B, S, G, D].
        rows: positions [B or 1, L, R], for rows that are not all of them.
        whole: rows are not a selection; with R = S each branch computes its own grid and nothing else.
    Cost: whole: O(sum_k S w_k / r_k^2) a head; else O(R·S) a branch.
    """
    size, length = q.shape[2] // k.shape[2], k.shape[1]
    if size > 1:
        k, v = k.repeat_interleave(size, 2), v.repeat_interleave(size, 2)
    if whole and q.shape[1] == length and dilation.detach and _has_kernel(q):
        heads = q.shape[2]
        extra, more, branches = _even(length, heads, dilation.branches)
        parts = [pad(x, (0, 0, 0, more, 0, extra)) if extra or more else x for x in (q, k, v)]
        merged: Tensor = _Merged.apply(*parts, branches)
        return merged[:, :length, :heads]
    outs, sums = [], []
    for segment, rate in dilation.branches:
        if whole and q.shape[1] == length:
            out, total = _grid(q, k, v, segment, rate, exact=not dilation.detach)
        else:
            out, total = eager_attend(q, k, v, on_grid(rows, length, q.shape[2], segment, rate))
        outs.append(out)
        sums.append(total.detach() if dilation.detach else total)
    weight = torch.stack(sums).softmax(0).to(q.dtype)
    return (torch.stack(outs) * weight[..., None]).sum(0)


def on_grid(rows: Tensor, n_keys: int, heads: int, segment: int, rate: int) -> Tensor:
    """Which keys a branch reads: bool [B or 1, H, R, S]; nothing in an empty slot and for a row off its head's grid."""
    keys = torch.arange(n_keys, device=rows.device)
    head = torch.arange(heads, device=rows.device)
    row = rows[:, head // (heads // rows.shape[1])][..., None]
    offset = (head % rate)[:, None, None]
    grid = (row % segment % rate == offset) & (keys % segment % rate == offset)
    return grid & (keys <= row) & (keys // segment == row // segment)


def eager_attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """(o [B, R, H, D], log-sum-exp [B, R, H]) under a mask [B or 1, H, R, S]; 0 and -1e30 where nothing is visible."""
    number = torch.float64 if q.dtype == torch.float64 else torch.float32
    score = torch.einsum("brhd,bshd->bhrs", q.to(number), k.to(number)) * q.shape[-1] ** -0.5
    score = score.masked_fill(~visible, _NOTHING)
    total = score.logsumexp(-1).masked_fill(~visible.any(-1), _NOTHING)
    weight = score.softmax(-1).masked_fill(~visible, 0.0)
    return torch.einsum("bhrs,bshd->brhd", weight, v.to(number)).to(q.dtype), total.transpose(1, 2)


def _has_kernel(q: Tensor) -> bool:
    """Whether torch's flash kernel takes these numbers."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return half and q.shape[3] % 8 == 0 and q.shape[3] <= 256 if q.is_cuda else q.dtype != torch.float64


def _even(length: int, heads: int, branches: Branches) -> tuple[int, int, Branches]:
    """Positions and heads to add so that segments and offsets come out even, and no segment beyond the sequence."""
    unit = math.lcm(*(segment if segment <= length else rate for segment, rate in branches))
    extra = -length % unit
    # Heads at one offset are a whole number of rates apart; with fewer heads than offsets each has its own.
    more = -heads % math.lcm(*(rate for _, rate in branches if rate <= heads))
    return extra, more, tuple((segment if segment <= length else length + extra, rate) for segment, rate in branches)


def _on_grid(x: Tensor, width: int, rate: int) -> Tensor:
    """The positions of each head's grid as a view: [B, N · width, H, ...] -> [C, B, N, M, K, ...].

    Head h is at h mod rate. Heads a whole number of rates apart are at one offset, heads side by side at offsets side
    by side: both are one stride, and the fewer calls decide which of them a call has.
    """
    (n_batch, length, heads, *rest), (b, s, h, *inner) = x.shape, x.stride()
    beside, apart = (min(rate, heads), s + h), (max(1, heads // rate), rate * h)
    (calls, far), (together, near) = (beside, apart) if beside[0] <= apart[0] else (apart, beside)
    shape = (calls, n_batch, length // width, width // rate, together, *rest)
    return x.as_strided(shape, (far, b, width * s, rate * s, near, *inner), x.storage_offset())


class _Merged(torch.autograd.Function):
    """All branches by flash attention on views of their grids: nothing is gathered, and each adds up where its grid is.

    The weights of the merge carry no gradient, as published, so that each branch's own backward pass is all there is.
    The first branch has rate 1 and covers everything.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, branches: Branches) -> Tensor:
        found = [_flash(*(_on_grid(x, *branch) for x in (q, k, v))) for branch in branches]
        total = found[0][1][0].flatten(1, 2).clone(memory_format=torch.contiguous_format)
        for branch, (_, sums, _) in zip(branches[1:], found[1:], strict=True):
            at = _on_grid(total, *branch)
            at.copy_(torch.logaddexp(at, sums))
        weights = [
            (sums - _on_grid(total, *branch)).exp().to(q.dtype)[..., None]
            for branch, (_, sums, _) in zip(branches, found, strict=True)
        ]
        o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        torch.mul(found[0][0], weights[0], out=_on_grid(o, *branches[0]))
        for branch, (out, _, _), weight in zip(branches[1:], found[1:], weights[1:], strict=True):
            _on_grid(o, *branch).addcmul_(out, weight)
        ctx.branches, ctx.kept = branches, [kept for _, _, kept in found]
        ctx.save_for_backward(q, k, v, *weights)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        sums: list[Tensor] = []
        for branch, weight, kept in zip(ctx.branches, weights, ctx.kept, strict=True):
            parts = [_on_grid(x, *branch) for x in (q, k, v)]
            found = _flash_backward(_on_grid(grad, *branch) * weight, parts, kept)
            if not sums:
                sums = [part[0].flatten(1, 2).contiguous() for part in found]
                continue
            for whole, part in zip(sums, found, strict=True):
                _on_grid(whole, *branch).add_(part)
        return *sums, None


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
    """Causal attention along M of [C, B, N, M, K, D]: o, log-sum-exp [C, B, N, M, K], and what the way back needs."""
    outs, sums, kept = [], [], []
    for call in range(len(q)):
        parts = [x[call].flatten(0, 1).transpose(1, 2) for x in (q, k, v)]
        if q.is_cuda:
            out, total, *rest = torch.ops.aten._scaled_dot_product_flash_attention(*parts, 0.0, True)
        else:
            out, total, *rest = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, True)
        kept.append((out, total, rest))
        outs.append(out.transpose(1, 2))
        # Some kernels round the length of the sums up.
        sums.append(total[..., : q.shape[3]].transpose(1, 2).float())
    shape = q.shape[1:3]
    o, total = (stack[0][None] if len(stack) == 1 else torch.stack(stack) for stack in (outs, sums))
    return o.unflatten(1, shape), total.unflatten(1, shape), kept


def _flash_backward(grad: Tensor, parts: Sequence[Tensor], kept: Sequence[Any]) -> list[Tensor]:
    """Gradients of q, k, v, each [C, B, N, M, K, D]."""
    found: list[list[Tensor]] = [[], [], []]
    for call, (out, total, rest) in enumerate(kept):
        given = [x[call].flatten(0, 1).transpose(1, 2) for x in (grad, *parts)]
        if grad.is_cuda:
            cum_q, cum_k, most_q, most_k, seed, offset = rest[:6]
            pulled = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                *given, out, total, cum_q, cum_k, most_q, most_k, 0.0, True, seed, offset
            )
        else:
            pulled = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, out, total, 0.0, True)
        for stack, part in zip(found, pulled, strict=True):
            stack.append(part.transpose(1, 2))
    shape = grad.shape[1:3]
    stacked = (stack[0][None] if len(stack) == 1 else torch.stack(stack) for stack in found)
    return [x.unflatten(1, shape) for x in stacked]


def _grid(q: Tensor, k: Tensor, v: Tensor, segment: int, rate: int, *, exact: bool) -> tuple[Tensor, Tensor]:
    """One branch, its grid taken out as a batch of short dense sequences and put back."""
    n_batch, length, heads, dim = q.shape
    width = min(segment, -(-length // rate) * rate)
    extra = -length % width
    head = torch.arange(heads, device=q.device)

    def pick(x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, 0, 0, extra)).view(n_batch, -1, width // rate, rate, heads, dim)
        return x[:, :, :, head % rate, head].flatten(0, 1)

    out, total = _causal(pick(q), pick(k), pick(v), exact)
    shape = (n_batch, (length + extra) // width, width // rate, rate, heads)
    at = (slice(None), slice(None), slice(None), head % rate, head)
    whole = out.new_zeros(*shape, dim)
    sums = total.new_full(shape, _NOTHING)
    whole[at] = out.unflatten(0, shape[:2])
    sums[at] = total.unflatten(0, shape[:2])
    return whole.flatten(1, 3)[:, :length], sums.flatten(1, 3)[:, :length]


def _causal(q: Tensor, k: Tensor, v: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """(o [B, M, H, D], log-sum-exp [B, M, H]) of dense causal attention; `exact` wants a gradient of both."""
    length = q.shape[1]
    # The backward pass of the memory-efficient kernel refuses the log-sum-exp that its own forward returns.
    if exact or torch.is_grad_enabled() or not q.is_cuda or q.dtype != torch.float32 or q.shape[3] % 8:
        place = torch.arange(length, device=q.device)
        return eager_attend(q, k, v, (place <= place[:, None])[None, None])
    parts = [t.transpose(1, 2) for t in (q, k, v)]
    out, total = torch.ops.aten._scaled_dot_product_efficient_attention(*parts, None, True, 0.0, True)[:2]
    return out.transpose(1, 2), total[..., :length].transpose(1, 2).float()
