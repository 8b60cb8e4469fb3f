"""Centroid selector: queries and keys are assigned to learned centroids, and attend where they share one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("centroid")
class CentroidSelector(ContentSelector):
    """s_ij = log Σ_c p(c | q_i) p(c | k_j),  p(c | x) = softmax_c(g <x/|x|, m_c/|m_c|>)     (after Roy et al. 2021)

    # paper: the Routing Transformer assigns hard, with moving averages as centroids; here both are soft and learned.

    Args:
        clusters: C.
        sharpness: g.
    Cost: O(T·C·E).
    """

    def __init__(self, context: SelectorContext, *, clusters: int = 32, sharpness: float = 10.0) -> None:
        super().__init__(context)
        if clusters < 2:
            raise ConfigError(f"selector centroid: clusters={clusters}; expected >= 2")
        self.sharpness = sharpness
        self.map = nn.Linear(context.width, context.width, bias=False)
        self.centroid = nn.Parameter(torch.randn(clusters, context.width))

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        share = (normalize(self.map(x), dim=-1) @ normalize(self.centroid, dim=-1).T * self.sharpness).softmax(-1)
        return (rows_at(share, at) @ share.transpose(1, 2)).clamp(min=1e-9).log()
