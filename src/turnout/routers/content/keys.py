"""From scores to `attend(keys=…)`: the keys that every row of a causal model may read.

B batch, T tokens, E width, U units, K keys of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError, UnsupportedError
from turnout.routers.content.base import ContentSelector


@torch.no_grad()
def causal_keys(selector: ContentSelector, x: Tensor, tokens: Tensor, *, k: int, expand: int = 0) -> Tensor:
    """Keys of all rows, for `turnout.ops.attend`: the row itself, and the k best units that lie wholly before it.

    Args:
        selector: scores units one by one; what reads the whole sequence is refused.
        x: representations [B, T, E], causal themselves.
        tokens: ids [B, T].
        k: units of a row.
        expand: following tokens read with each pick, never beyond the row.
    Returns:
        int64 [B, T, 1, 1 + k·(unit + expand)], -1 = empty slot; a position may occur twice.
    Raises:
        UnsupportedError: the selector is not causal.
        ConfigError: k < 1 or expand < 0.
    Cost: O(T²) scores; an index (exact, Bloom, low rank) can serve the same keys without them.
    """
    if not selector.causal:
        raise UnsupportedError(
            f"selector {type(selector).__name__} reads the whole sequence, so its choice at t depends on later tokens; "
            "use one that scores units one by one (pairwise, low_rank, cosine, exact, segment, bloom, …)"
        )
    if k < 1 or expand < 0:
        raise ConfigError(f"k={k}, expand={expand}; expected k >= 1 and expand >= 0")
    n_batch, length = tokens.shape
    rows = torch.arange(length, device=x.device)
    score = selector(x, tokens, rows.expand(n_batch, -1))
    last = (torch.arange(selector.units, device=x.device) + 1) * selector.unit - 1
    score = score.masked_fill(last[None] >= rows[:, None], -torch.inf)
    best = score.topk(min(k, selector.units), dim=-1)
    # A score of zero from an index means "not there"; a unit at -inf is no candidate.
    empty = best.values.isinf() if selector.learned else best.values <= 0
    inside = torch.arange(selector.unit + expand, device=x.device)
    keys = best.indices[..., None] * selector.unit + inside
    keys = keys.masked_fill(empty[..., None] | (keys > rows[:, None, None]), -1).flatten(-2)
    own = rows.expand(n_batch, -1)[..., None]
    return torch.cat((own, keys), dim=-1)[:, :, None]
