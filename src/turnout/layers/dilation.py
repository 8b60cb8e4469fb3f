"""Dilated segments: branches that read a grid inside a segment, merged by log-sum-exp.

B batch, R query rows, S keys, H query heads, G kv heads, D head dim, N segments, M positions of a grid, L row lists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from turnout.routers.pattern.reach import Dilation

_NOTHING = -1e30


def dilated(q: Tensor, k: Tensor, v: Tensor, dilation: Dilation, rows: Tensor, *, whole: bool) -> Tensor:
    """o = sum_k a_k o_k, a = softmax over branches of their log-sum-exp (Ding et al. 2023).

    Args:
        q: [B, R, H, D]; k, v: [B, S, G, D].
        rows: positions [B or 1, L, R], for rows that are not all of them.
        whole: rows are not a selection; with R = S each branch computes its own grid and nothing else.
    Cost: whole: O(sum_k S w_k / r_k^2) a head; else O(R·S) a branch.
    """
    size = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(size, 2), v.repeat_interleave(size, 2)
    outs, sums = [], []
    for segment, rate in dilation.branches:
        if whole and q.shape[1] == k.shape[1]:
            out, total = _grid(q, k, v, segment, rate, exact=not dilation.detach)
        else:
            out, total = eager_attend(q, k, v, on_grid(rows, k.shape[1], q.shape[2], segment, rate))
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
    length, dim = q.shape[1], q.shape[3]
    # The backward pass of the memory-efficient kernel refuses the log-sum-exp that its own forward returns.
    trained = q.is_cuda and q.dtype == torch.float32 and torch.is_grad_enabled()
    if exact or trained or (q.is_cuda and dim % 8) or q.dtype == torch.float64:
        place = torch.arange(length, device=q.device)
        return eager_attend(q, k, v, (place <= place[:, None])[None, None])
    parts = [t.transpose(1, 2) for t in (q, k, v)]
    if not q.is_cuda:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, True)
    elif q.dtype in (torch.bfloat16, torch.float16):
        out, total = torch.ops.aten._scaled_dot_product_flash_attention(*parts, 0.0, True)[:2]
    else:
        out, total = torch.ops.aten._scaled_dot_product_efficient_attention(*parts, None, True, 0.0, True)[:2]
    # Some kernels round the length of the sums up.
    return out.transpose(1, 2), total[..., :length].transpose(1, 2).float()
