"""Adaptive budget: a query reads the more units the less it knows which, and learns from what it reads alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, SelectorContext
from turnout.routers.content.pairwise import PairwiseSelector


@CONTENT_SELECTORS.register("budget")
class BudgetSelector(PairwiseSelector):
    """Pairwise scores s_ij; query i reads its r_i best units, the others get the lowest score read minus ln U.

    r_i = ⌈spend · U · h_i⌉, at least 1;  h_i = -Σ_j p_ij ln p_ij / ln U,  p_i = softmax_j(s_ij)

    h is 1 for a query that knows nothing, which reads its whole budget, and falls to 0 with certainty. The score of
    what was not read carries no gradient, so a miss only says what was wrong, as an evaluation of picks does: evidence
    outside the budget teaches nothing about where it is.

    # paper: "MF-OFUL", a bandit over budget fractions, in prose only ("oscillates" at 50 %, "collapses" at 25 %); no
    # equations, and not what the budget is a fraction of. Ours keeps that question: does learning survive feedback from
    # a fraction of the sequence?

    Args:
        spend: largest fraction of the units that a query reads, in (0, 1].
        adaptive: False reads that fraction always (h = 1), the control.
    Cost: that of `pairwise` and one ordering of the scores.
    """

    causal = False

    def __init__(self, context: SelectorContext, *, spend: float = 0.5, adaptive: bool = True) -> None:
        super().__init__(context)
        if not 0 < spend <= 1:
            raise ConfigError(f"selector budget: spend={spend}; expected a fraction 0 < spend <= 1 of the units")
        self.spend, self.adaptive = spend, adaptive

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        score = super().score(x, tokens, at)
        read = self.reads(score)
        unread = score.masked_fill(~read, torch.inf).amin(-1, keepdim=True).detach() - math.log(self.units)
        return torch.where(read, score, unread)

    def reads(self, score: Tensor) -> Tensor:
        """bool [B, Q, U]: which units are read, from pairwise scores."""
        log_p = score.detach().log_softmax(-1)
        doubt = -(log_p.exp() * log_p).sum(-1, keepdim=True) / math.log(self.units) if self.adaptive else 1.0
        place = score.detach().argsort(-1, descending=True).argsort(-1)
        return place < (self.spend * self.units * doubt * torch.ones_like(log_p[..., :1])).ceil().clamp(min=1)
