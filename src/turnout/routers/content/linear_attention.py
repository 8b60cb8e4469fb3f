"""Linear-attention scores: a positive feature map on queries and keys."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import elu

from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("linear_attention")
class LinearAttentionSelector(ContentSelector):
    """s_ij = φ(W_q x_i)ᵀ φ(W_k x_j) / sqrt(E),  φ = elu + 1               (Katharopoulos et al. 2020)

    The study files it under "non-pairwise"; written per key it is a pair score like any other.
    """

    def __init__(self, context: SelectorContext) -> None:
        super().__init__(context)
        width = context.width
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.scale = width**-0.5

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        q, k = elu(self.q(rows_at(x, at))) + 1, elu(self.k(x)) + 1
        return q @ k.transpose(1, 2) * self.scale
