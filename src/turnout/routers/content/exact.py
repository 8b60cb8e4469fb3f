"""Exact index: keys that are the same token (or end in the same n-gram) as the query."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext


@CONTENT_SELECTORS.register("exact")
class ExactSelector(ContentSelector):
    """s_ij = 1 if tokens j-n+1..j equal tokens i-n+1..i. Not learned: the identity-match control.

    Args:
        ngram: n >= 1.
        offset: pick j + offset instead of j; 1 reads what followed the match.
        distance: matches nearer than this score 0.5: the control that also knows the task's distance.
    Cost: O(Q·T·n) here; a hash table needs O(T + Q).
    """

    learned = False

    def __init__(self, context: SelectorContext, *, ngram: int = 1, offset: int = 0, distance: int = 0) -> None:
        super().__init__(context)
        if ngram < 1 or offset < 0 or distance < 0:
            raise ConfigError(
                f"selector exact: ngram={ngram}, offset={offset}, distance={distance}; "
                "expected ngram >= 1 and the others >= 0"
            )
        if max(ngram, offset + 1) > context.length:
            raise ConfigError(
                f"selector exact: ngram={ngram}, offset={offset} reach past a sequence of {context.length} tokens"
            )
        self.ngram, self.offset, self.distance = ngram, offset, distance

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        match = torch.ones(*at.shape, tokens.shape[1], dtype=torch.bool, device=tokens.device)
        for back in range(self.ngram):
            wanted = tokens.gather(1, (at - back).clamp(min=0))
            there = torch.roll(tokens, back, 1)
            match = match & (there[:, None] == wanted[..., None]) & (place >= back)
        near = (place - at[..., None]).abs() < self.distance
        score = match.to(x.dtype) * torch.where(near, 0.5, 1.0)
        # The query finds itself; that would make the token behind it a match.
        score = score * (place != at[..., None])
        if self.offset:
            score = torch.roll(score, self.offset, -1) * (place >= self.offset)
        return score
