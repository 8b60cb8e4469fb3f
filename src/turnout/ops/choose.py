"""Choosing keys without comparing every row with every key: the latest of equal code, and the best of many blocks.

R rows, S keys, N blocks, K chosen of a row; "..." are batch axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ShapeError

# Codes are below 2^CODE_BITS, positions below 2^POSITION_BITS: side by side they fit an int64.
CODE_BITS, POSITION_BITS = 40, 22
# Scores of rows and blocks that are held at a time, at most.
MOST_SCORES = 2**26


@torch.no_grad()
def latest(asks: Tensor, holds: Tensor, last: Tensor, keep: int) -> Tensor:
    """The `keep` greatest positions s <= last_r with holds_s = asks_r, latest first; -1 = empty slot.

    Codes and positions are sorted side by side once, and every row searches its own: the index of all n-grams of a
    text, or of all buckets of a hash.

    Args:
        asks: what each row looks for, int64 [..., R] in 0 .. 2^40 - 1; -1 asks for nothing.
        holds: what each key is found by, int64 [..., S]; -1 is never found.
        last: the last position that a row may choose, int64, broadcast to [..., R]; negative: none.
        keep: K >= 1.
    Returns:
        int64 [..., R, K].
    Raises:
        ShapeError: 2^22 keys or more.
    Cost: O((S + R·K) log S); one row alone: O(S), without a sort. The choice carries no gradient.
    """
    n_keys = holds.shape[-1]
    if n_keys >= 2**POSITION_BITS:
        raise ShapeError(f"holds has {n_keys} positions; expected fewer than 2^{POSITION_BITS}")
    place = torch.arange(n_keys, device=holds.device)
    if asks.shape[-1] == 1:
        found = torch.where((holds == asks) & (asks >= 0) & (place <= last), place, -1)
        found = found.topk(min(keep, n_keys), dim=-1).values[..., None, :]
        return torch.nn.functional.pad(found, (0, keep - found.shape[-1]), value=-1)
    ordered = ((holds << POSITION_BITS) | place).sort(-1).values
    wanted = (asks << POSITION_BITS) | last.clamp(min=0)
    after = torch.searchsorted(ordered, wanted.contiguous(), right=True)
    at = after[..., None] - 1 - torch.arange(keep, device=holds.device)
    entry = ordered.gather(-1, at.clamp(min=0).flatten(-2)).view_as(at)
    same = (entry >> POSITION_BITS == asks[..., None]) & (at >= 0) & (asks >= 0)[..., None] & (last >= 0)[..., None]
    return torch.where(same, entry & (2**POSITION_BITS - 1), -1)


@torch.no_grad()
def best_blocks(asks: Tensor, holds: Tensor, before: Tensor, keep: int) -> Tensor:
    """The `keep` blocks n < before_r with the largest <asks_r, holds_n>; -1 = empty slot.

    Args:
        asks: [B, R, L, D]; holds: [B, N, L, D].
        before: how many blocks a row may choose from, int64 [B or 1, R, L or 1].
        keep: K >= 1.
    Returns:
        int64 [B, R, L, min(K, N)].
    Cost: O(B·R·N·L·D) multiply-adds, in pieces of rows; the choice carries no gradient.
    """
    (n_batch, n_rows, n_lists, _), n_blocks = asks.shape, holds.shape[1]
    keep = min(keep, n_blocks)
    if not keep:
        return before.new_zeros(n_batch, n_rows, n_lists, 0)
    piece = max(1, MOST_SCORES // (n_batch * n_lists * n_blocks))
    place, found = torch.arange(n_blocks, device=holds.device), []
    for start in range(0, n_rows, piece):
        score = torch.einsum("brld,bnld->brln", asks[:, start : start + piece], holds)
        score = score.masked_fill_(place >= before[:, start : start + piece, :, None], -torch.inf)
        best = []
        # A few largest one after another: sorting all of them, as topk does, costs more than reading them again.
        for _ in range(keep):
            value, index = score.max(-1, keepdim=True)
            best.append(torch.where(value == -torch.inf, -1, index))
            score.scatter_(-1, index, -torch.inf)
        found.append(torch.cat(best, -1))
    return torch.cat(found, 1)


def without_repeats(keys: Tensor) -> Tensor:
    """The same keys [..., K], each once, latest first; the slots that are left are -1."""
    ordered = keys.sort(-1, descending=True).values
    again = torch.nn.functional.pad(ordered[..., 1:] == ordered[..., :-1], (1, 0))
    return ordered.masked_fill(again, -1)
