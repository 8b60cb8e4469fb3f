"""The interface of query routers, and their registry.

A router is one file in this folder: a class with `@QUERY_ROUTERS.register("name")`. It is then found by models, tasks,
reports, controls and the causality check under that name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from turnout.routers.mode import RoutingMode
from turnout.routers.query.gating import Gating, Route
from turnout.spec import Registry

QUERY_ROUTERS = Registry("query router", "turnout.routers.query")


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterContext:
    """What the model tells every router it builds.

    Args:
        width: model dimension E of the router's input.
        groups: decisions per token: 1, or one per kv head.
        layer: index of the layer, from 0; controls use it so that layers differ.
        layers: of the model; None = unknown (a router built alone).
        seed: of the model; controls use it.
        gating: how logits become decisions.
    """

    width: int
    groups: int = 1
    layer: int = 0
    layers: int | None = None
    seed: int = 0
    gating: Gating = field(default_factory=Gating)


class QueryRouter(nn.Module):
    """Base of all query routers: `score` gives gate logits, `forward` the decision.

    Subclasses implement `score`; a control that decides without a logit overrides `forward`. A router whose decision
    at t reads anything after t sets `causal = False`, and causal models refuse it. `least_batch` is the fewest
    sequences that it can decide for. A router that `packs` lets no decision hang on what lies before `mode.starts`.
    """

    causal: bool = True
    learned: ClassVar[bool] = True
    needs_hint: bool = False
    causal_variant: str = ""
    least_batch: ClassVar[int] = 1
    packs: ClassVar[bool] = False

    def __init__(self, context: RouterContext) -> None:
        super().__init__()
        self.context = context

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Memory of the router before the first token; None when it has none."""
        return None

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        """Gate logits [B, T, G] of inputs `x` [B, T, E], and the state after them."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        """Decide for every token of `x` [B, T, E].

        Args:
            mode: whether gates are sampled, and from which generator.
            state: from `init_state` or the previous call; None starts a sequence.
            hint: bool [B, T], where the task says that attention is needed; only the oracle reads it.
        Returns:
            Route, and the state after the last token.
        """
        logit, state = self.score(x, state, hint)
        return self.context.gating.decide(logit, mode), state
