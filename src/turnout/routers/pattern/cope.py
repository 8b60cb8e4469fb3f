"""Contextual position encoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.reach import Reach


@PATTERNS.register("cope")
class CopePattern(Pattern):
    """Distance counted in tokens that the query's head finds interesting (Golovneva et al. 2024).

        p_ts = min(positions - 1, sum over s <= l <= t of sigmoid(score_tl));   score_ts + q_t · e[p_ts], interpolated

    Args:
        positions: learned vectors of a head, >= 2.
    Cost: the whole score matrix; there is no kernel for it.
    """

    # paper: the embeddings are shared by the heads of a layer; here each head has its own.

    def __init__(self, context: PatternContext, *, positions: int = 64) -> None:
        super().__init__(context)
        if positions < 2:
            raise ConfigError(f"pattern cope: positions={positions}; expected >= 2")
        self.table = nn.Parameter(torch.zeros(context.heads, positions, context.head_dim))

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(contextual=self.table)
