"""Pairwise selector: one full-rank bilinear form."""

from __future__ import annotations

from torch import Tensor, nn

from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("pairwise")
class PairwiseSelector(ContentSelector):
    """s_ij = (1/H) Σ_h (W_q^h x_i)ᵀ (W_k^h x_j) / sqrt(E/H) = q_iᵀ k_j / sqrt(E·H)      (Basu 2026, eq. 1)

    The heads are averaged, so H is a temperature and nothing else.

    Args:
        heads: H; 0 takes the model's.
        frozen: keep the random W_q and W_k (a control).
    Cost: O(T·E²) for the keys and O(Q·T·E) for the scores.
    """

    def __init__(self, context: SelectorContext, *, heads: int = 0, frozen: bool = False) -> None:
        super().__init__(context)
        width = context.width
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.scale = (width * (heads or context.heads)) ** -0.5
        self.requires_grad_(not frozen)

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        return self.q(rows_at(x, at)) @ self.k(x).transpose(1, 2) * self.scale
