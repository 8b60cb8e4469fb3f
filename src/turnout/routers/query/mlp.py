"""Two-layer MLP query router, as in the routed-attention paper."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext


@QUERY_ROUTERS.register("mlp")
class MLPRouter(QueryRouter):
    """[z0, z1] = W2 GELU(W1 x), E -> E/4 -> 2 per group; z = z1 - z0       (Bonsignore 2026, paper form)

    Args:
        hidden: width of the hidden layer; None = E // 4.
        bias: added to the initial bias of z1; 0 is the published initialisation.
    Cost: O(E·hidden) per token.
    """

    packs = True

    def __init__(self, context: RouterContext, *, hidden: int | None = None, bias: float = 0.0) -> None:
        super().__init__(context)
        if hidden is not None and hidden < 1:
            raise ConfigError(f"router mlp: hidden={hidden}; expected >= 1, or none for E // 4 = {context.width // 4}")
        hidden = max(1, context.width // 4) if hidden is None else hidden
        last = nn.Linear(hidden, 2 * context.groups)
        self.net = nn.Sequential(nn.Linear(context.width, hidden), nn.GELU(), last)
        last.bias.data.view(context.groups, 2)[:, 1] += bias

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        z = self.net(x).unflatten(-1, (self.context.groups, 2))
        return z[..., 1] - z[..., 0], state
