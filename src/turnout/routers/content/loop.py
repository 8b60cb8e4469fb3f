"""Decision-optimal loop: route, read, add what was read to the query, route again."""

from __future__ import annotations

from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("loop")
class LoopSelector(ContentSelector):
    """x_i ← x_i + W_o Σ_j softmax_j(s_ij) W_v x_j, `rounds` - 1 times; s_ij = <W_q x_i, W_k x_j> / sqrt(E·H).

    # paper: "refined over 2-3 rounds using execution feedback from the Council", no equations; the feedback here is a
    # soft read of the current scores, so that it has a gradient.

    Args:
        rounds: of routing, >= 1; 1 is the pairwise selector.
    """

    causal = False

    def __init__(self, context: SelectorContext, *, rounds: int = 3) -> None:
        super().__init__(context)
        if rounds < 1:
            raise ConfigError(f"selector loop: rounds={rounds}; expected >= 1")
        width = context.width
        self.rounds = rounds
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.scale = (width * context.heads) ** -0.5

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        query, keys, values = rows_at(x, at), self.k(x).transpose(1, 2), self.value(x)
        score = self.q(query) @ keys * self.scale
        for _ in range(self.rounds - 1):
            query = query + score.softmax(-1) @ values
            score = self.q(query) @ keys * self.scale
        return score
