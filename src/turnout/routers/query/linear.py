"""Linear query router."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.ops.gate import linear_gate
from turnout.ops.untouched import untouched
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext


@QUERY_ROUTERS.register("linear")
class LinearRouter(QueryRouter):
    """z = W x + b with W in R^{G x E}; the initial bias decides for most tokens at first.

    Args:
        bias: initial b; +2 opens 88 % of the gates, so that training starts with attention on.
        std: standard deviation of the initial W; None keeps PyTorch's default U(-1/sqrt(E), 1/sqrt(E)).
    Cost: O(E·G) per token.
    """

    packs = True

    def __init__(self, context: RouterContext, *, bias: float = 2.0, std: float | None = None) -> None:
        super().__init__(context)
        if std is not None and std < 0:
            raise ConfigError(f"router linear: std={std}; expected >= 0, or none for PyTorch's default")
        self.proj = nn.Linear(context.width, context.groups)
        nn.init.constant_(self.proj.bias, bias)
        if std is not None:
            nn.init.normal_(self.proj.weight, std=std)

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        if not untouched(self.proj):
            return self.proj(x), state
        return linear_gate(x, self.proj.weight, self.proj.bias), state
