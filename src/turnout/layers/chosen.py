"""Attention to a window and to a few single keys chosen for each row, without a table of all pairs.

B batch, R query rows, S keys, H query heads, G kv heads, F query heads of a kv head, D head dim, L lists (1 or G),
K chosen keys of a row, N chunks of C rows, P keys of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from turnout.ops.attend.call import autocast
from turnout.ops.attend.reference import compute_dtype
from turnout.ops.attend.triton.support import MAX_HEAD_DIM, why_not_here
from turnout.ops.choose import latest, without_repeats
from turnout.routers.pattern.reach import Buckets

# Rows of a chunk, at least: wide enough for a matrix product.
LEAST_ROWS = 16
# Numbers picked at a time: torch counts those of a gradient on a GPU in 32 bits, and reads elsewhere beyond.
MOST_PICKED = 2**30
_HIDDEN = -1e30


def near_and_chosen(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, window: int, rows: Tensor | None, *, mark: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Softmax attention of each row t to s with t - window < s <= t, and to its chosen keys s <= t - window.

    Args:
        q: [B, R, H, D]; k, v: [B, S, G, D].
        keys: int64 [B, R, L, K], no position twice in a list, -1 = empty slot; those inside the window count once.
        window: w >= 1.
        rows: positions int64 [B or 1, L, R], -1 = empty slot; None = the last R.
        mark: log weight [H] of a chosen key outside the window.
        impl: "auto" runs the kernels where they can; "reference" is torch alone.
    Returns:
        o: like q; 0 in an empty slot.
    Cost: O(R·(w + K)·H·D) multiply-adds, O(R·(w + K)·H) weights, and a copy of the chosen keys and values, R·K·G·D
        numbers each; rows that are listed have their windows copied too. The kernels copy nothing. The gradients of a
        key that several rows chose are summed in one order.
    """
    groups, number = k.shape[2], compute_dtype(q.dtype)
    at = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)[None, :, None, None]
    at = at if rows is None else rows.transpose(1, 2)[..., None]
    far = keys.masked_fill(keys > at - window, -1)
    if impl == "auto" and rows is None and q.is_cuda and not _why_not_kernel(q):
        # Not at the top: `import turnout` does not import Triton.
        from turnout.ops.attend.triton.singles import window_and_singles

        return window_and_singles(*autocast(q, k, v), far.expand(len(q), -1, -1, -1), window, mark)
    if rows is not None:
        near = (at - torch.arange(window, device=q.device)).clamp(min=-1)
        near, far = (part.expand(len(q), -1, max(far.shape[2], at.shape[2]), -1) for part in (near, far))
        far = torch.cat([far, near], -1).masked_fill(at < 0, -1)
    seen = (far >= 0).expand(len(q), -1, groups, -1).transpose(1, 2)[:, :, None]
    index = torch.where(far >= 0, far, at.clamp(min=0)).expand(len(q), -1, -1, -1)
    heads = q.unflatten(2, (groups, -1))
    score = torch.einsum("brgfd,brgkd->bgfrk", heads, _pick(k, index)).to(number) * q.shape[-1] ** -0.5
    if mark is not None:
        single = torch.arange(score.shape[-1], device=q.device) < keys.shape[-1]
        score = score + mark.to(number).view(groups, -1, 1, 1) * single
    score = score.masked_fill(~seen, _HIDDEN)
    if rows is None:
        score = torch.cat([score, _near_scores(heads, k, window).to(number) * q.shape[-1] ** -0.5], -1)
    weight = score.softmax(-1).to(v.dtype)
    o = torch.einsum("bgfrk,brgkd->brgfd", weight[..., : index.shape[-1]], _pick(v, index))
    if rows is None:
        return (o + _near_values(weight[..., index.shape[-1] :], v, window)).flatten(2, 3)
    empty = (at[..., 0] < 0).expand(-1, -1, groups)[..., None, None]
    return o.masked_fill(empty, 0.0).flatten(2, 3)


def _why_not_kernel(q: Tensor) -> str:
    """The first reason why the kernels cannot run; "" if there is none."""
    if q.dtype == torch.float64 or q.shape[3] > MAX_HEAD_DIM:
        return f"q is {q.dtype} of head dim {q.shape[3]}"
    return why_not_here(q.device.type, q.device.index or 0)


@torch.no_grad()
def keys_of_buckets(q: Tensor, k: Tensor, buckets: Buckets, window: int, at: Tensor) -> Tensor:
    """For each row at position t the latest keys s <= t - window in its bucket, over all tables: [B, R, G, K].

    The bucket of a vector is the signed axis nearest to it after a rotation (Andoni et al. 2015); a kv head asks with
    the sum of its query heads. With `shift` a key is found by the one before it.

    Args:
        at: positions int64 [B or 1, L, R], -1 = empty slot.
    """
    groups, first = k.shape[2], k.shape[1]
    asks = _codes(q.unflatten(2, (groups, -1)).float().sum(3), buckets.axes)
    holds = pad(_codes(k.float(), buckets.axes), (buckets.shift, 0), value=-1)[..., :first]
    found = latest(asks, holds, (at - window)[:, :, None], buckets.keep)
    return without_repeats(found.permute(0, 3, 1, 2, 4).flatten(3))


def _codes(x: Tensor, axes: Tensor) -> Tensor:
    """Bucket of [B, R, G, D] in each table of `axes` [N, D, A]: int64 [B, G, N, R] in 0 .. 2A - 1."""
    along = torch.einsum("brgd,nda->bgnra", x, axes.to(x))
    return torch.cat([along, -along], -1).argmax(-1)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """x [B, S, G, D] at positions [B, R, L, K] -> [B, R, G, K, D]."""
    n_batch, n_keys, groups, dim = x.shape
    piece = max(1, MOST_PICKED // (n_batch * index.shape[3] * groups * dim))
    if index.shape[1] > piece:
        return torch.cat([_pick(x, part) for part in index.split(piece, 1)], 1)
    first = torch.arange(n_batch, device=x.device)[:, None, None, None] * n_keys
    if index.shape[2] == 1:
        # One row of all kv heads at a time.
        return (
            embedding((first + index)[:, :, 0], x.flatten(0, 1).flatten(1)).unflatten(3, (groups, dim)).transpose(2, 3)
        )
    head = torch.arange(groups, device=x.device)[:, None]
    return embedding((first + index) * groups + head, x.flatten(0, 2))


def _chunks(x: Tensor, n_rows: int, window: int) -> tuple[Tensor, int]:
    """What each chunk of the last rows may see of x [B, S, G, D]: a view [B, N, G, D, P], and C."""
    size = min(max(window, LEAST_ROWS), n_rows)
    first = x.shape[1] - n_rows - window + 1
    x = pad(x[:, max(first, 0) :], (0, 0, 0, 0, max(-first, 0), -n_rows % size))
    return x.unfold(1, size + window - 1, size), size


def _near_scores(heads: Tensor, k: Tensor, window: int) -> Tensor:
    """Scores of [B, R, G, F, D] with the keys of each row's chunk, hidden outside the window: [B, G, F, R, P]."""
    n_rows = heads.shape[1]
    chunks, size = _chunks(k, n_rows, window)
    rows = pad(heads, (0, 0, 0, 0, 0, 0, 0, -n_rows % size)).unflatten(1, (-1, size))
    score = torch.einsum("bncgfd,bngdp->bgfncp", rows, chunks)
    row, key = (torch.arange(n, device=k.device) for n in (size, size + window - 1))
    ahead = key - row[:, None]
    place = k.shape[1] - n_rows - window + 1 + torch.arange(score.shape[3], device=k.device)[:, None] * size + key
    hidden = ((ahead < 0) | (ahead >= window)) | (place[:, None] < 0)
    return score.masked_fill(hidden, _HIDDEN).flatten(3, 4)[:, :, :, :n_rows]


def _near_values(weight: Tensor, v: Tensor, window: int) -> Tensor:
    """Values of each row's chunk under weights [B, G, F, R, P]: [B, R, G, F, D]."""
    n_rows = weight.shape[3]
    chunks, size = _chunks(v, n_rows, window)
    weight = pad(weight, (0, 0, 0, -n_rows % size)).unflatten(3, (-1, size))
    return torch.einsum("bgfncp,bngdp->bncgfd", weight, chunks).flatten(1, 2)[:, :n_rows]
