"""Random projection: the same fixed random map for queries and keys, which keeps dot products."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("random_projection")
class RandomProjectionSelector(ContentSelector):
    """s_ij = <R x_i, R x_j>,  R ~ N(0, 1/r), never trained (Johnson & Lindenstrauss).

    Args:
        rank: r; 0 = E.
        twin: False draws another R for the keys: dot products are lost, the control of the published test.
    """

    learned = False
    q: Tensor
    k: Tensor

    def __init__(self, context: SelectorContext, *, rank: int = 0, twin: bool = True) -> None:
        super().__init__(context)
        rank = rank or context.width
        if rank < 1:
            raise ConfigError(f"selector random_projection: rank={rank}; expected >= 1, or 0 for the width")
        first = torch.randn(rank, context.width) * rank**-0.5
        self.register_buffer("q", first)
        self.register_buffer("k", first.clone() if twin else torch.randn(rank, context.width) * rank**-0.5)

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        return (rows_at(x, at) @ self.q.T) @ (x @ self.k.T).transpose(1, 2)
