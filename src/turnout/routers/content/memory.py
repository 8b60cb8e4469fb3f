"""Memory bank: tokens are written softly into a few slots, the query reads the slots.

B batch, T tokens, Q queries, E width, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("memory")
class MemorySelector(ContentSelector):
    """s_ij = log Σ_s r_s w_js: what slot the query reads, and what was written there.

        w_js = softmax_s(<k_j, a_s>/√E),  m_s = Σ_j w_js k_j / Σ_j w_js,  r_s = softmax_s(<q_i, m_s>/√E)

    The study names memory banks and never describes them; this is our definition, not theirs.

    Args:
        slots: S.
    Cost: O(T·S·E).
    """

    causal = False

    def __init__(self, context: SelectorContext, *, slots: int = 16) -> None:
        super().__init__(context)
        if slots < 2:
            raise ConfigError(f"selector memory: slots={slots}; expected >= 2")
        width = context.width
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.address = nn.Parameter(torch.randn(slots, width))
        self.scale = width**-0.5

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        keys = self.k(x)
        write = (keys @ self.address.T * self.scale).softmax(-1)
        bank = (write.transpose(1, 2) @ keys) / write.sum(1)[..., None].clamp(min=1e-6)
        read = (self.q(rows_at(x, at)) @ bank.transpose(1, 2) * self.scale).softmax(-1)
        return (read @ write.transpose(1, 2)).clamp(min=1e-9).log()
