"""Expert-choice query router: top-k over the whole sequence. Not causal, and says so."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.gating import Route


@QUERY_ROUTERS.register("expert_choice")
class ExpertChoiceRouter(QueryRouter):
    """Keep the k = ceil(usage · T) tokens with the highest score of the sequence.

    s = W x;  taken = s among the top k of its sequence;  weight = taken · sigmoid(s)
                                                                              (Mixture-of-Depths, 2404.02258)

    Whether a token passes depends on later tokens, so causal models refuse it; bidirectional ones may use it.

    Args:
        usage: fraction kept, in (0, 1].
    Cost: O(E·G) per token plus a top-k over T.
    """

    causal = False
    causal_variant = "threshold"

    def __init__(self, context: RouterContext, *, usage: float = 0.125) -> None:
        super().__init__(context)
        if not 0 < usage <= 1:
            raise ConfigError(f"router expert_choice: usage={usage}; expected 0 < usage <= 1")
        self.usage = usage
        self.proj = nn.Linear(context.width, context.groups)

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        score = self.proj(x)
        # Rounded first: 0.07 · 100 is a little above 7 in floating point.
        keep = min(x.shape[1], math.ceil(round(self.usage * x.shape[1], 9)) or 1)
        top = score.topk(keep, dim=1).indices
        taken = torch.zeros_like(score, dtype=torch.bool).scatter_(1, top, True)
        gate = torch.sigmoid(score)
        return Route(gate=gate, weight=gate * taken, taken=taken), state
