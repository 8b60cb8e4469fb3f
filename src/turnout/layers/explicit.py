"""A `Reach` written out as one number a pair: for figures, search and comparison, not for speed.

H query heads, T rows, S keys, L row lists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import UnsupportedError
from turnout.layers.dilation import on_grid
from turnout.layers.reading import HIDDEN, log_weights
from turnout.routers.pattern.reach import Blocks, Reach


def explicit_log_weights(
    reach: Reach, heads: int, kv_heads: int, length: int, device: torch.device, *, by_content: bool = False
) -> Tensor:
    """What `reach` adds to the scores of whole sequences, float32 [H, T, S]; `HIDDEN` where a key is not read.

    A decay that hangs on the tokens, and how often a row is taken, are averaged over the batch. Pruning is left out: it
    changes no weight by more than its own bound.

    Args:
        by_content: what hangs on queries and keys counts as if it let everything through, which it may.
    Raises:
        UnsupportedError: contextual positions or chosen blocks, which are no function of the pair.
    """
    if by_content and reach.by_content:
        return torch.full((length, length), HIDDEN, device=device).triu(1).expand(heads, -1, -1)
    if reach.contextual is not None:
        raise UnsupportedError("contextual positions hang on the scores; there is no weight of a pair of positions")
    if reach.by_content:
        raise UnsupportedError("chosen keys hang on tokens, queries or keys; there is no weight of a pair of positions")
    size = heads // kv_heads
    if reach.parts:
        return torch.cat(
            [explicit_log_weights(p, n, n // size, length, device, by_content=by_content) for n, p in reach.parts]
        )
    if reach.blend is not None:
        far, near = (
            explicit_log_weights(part, heads, kv_heads, length, device) for part in (reach.blend.far, reach.blend.near)
        )
        if reach.blend.open is not None:
            chosen = torch.tensor(reach.blend.open, device=device).repeat_interleave(size)
            return torch.where(chosen[:, None, None], far, near)
        z = reach.blend.z.detach().float().repeat_interleave(size)[:, None, None]
        return torch.logaddexp(far + z.log(), near + (1 - z).log()).clamp(min=HIDDEN)
    if reach.routed is not None:
        far, near = (
            explicit_log_weights(part, heads, kv_heads, length, device) for part in (Reach(), reach.routed.near)
        )
        share = reach.routed.taken.float().mean(0)[:, None]
        return torch.logaddexp(far + share.log(), near + (1 - share).log()).clamp(min=HIDDEN)
    rows = torch.arange(length, device=device)
    causal = rows <= rows[:, None]
    if reach.dilation is not None:
        counts = torch.stack([on_grid(rows[None, None], length, heads, w, r)[0] for w, r in reach.dilation.branches])
        count = counts.sum(0).float()
        return torch.where(count > 0, count.clamp(min=1).log(), HIDDEN)
    if isinstance(reach.blocks, Blocks):
        b = reach.blocks
        near_ = rows[:, None] // b.size - rows // b.size <= b.near
        visible = causal & (near_ | (rows // b.size % b.stride == 0))
        return torch.where(visible, 0.0, HIDDEN).expand(heads, -1, -1)
    added = log_weights(reach, rows[None, None], rows, heads, torch.float32)[0]
    if reach.log_decay is not None:
        total = reach.log_decay.detach().double().cumsum(1).mean(0).T
        added = (added + (total[:, :, None] - total[:, None, :]).float()).clamp(min=HIDDEN)
        added = torch.where(causal, added, HIDDEN)
    return added
