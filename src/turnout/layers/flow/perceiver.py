"""Hubs: a few learned vectors read the sequence, and every token reads the hubs.

B batch, T tokens, E width, M hubs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.layers.flow.base import FLOWS, Flow, FlowContext


class CrossAttention(nn.Module):
    """Rows of `to` read the rows of `source`, `heads` heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, to: Tensor, source: Tensor) -> Tensor:
        q = self.q(to).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return self.out((score.softmax(-1) @ v).transpose(1, 2).flatten(-2))


@FLOWS.register("perceiver")
class PerceiverFlow(Flow):
    """z = Attn(hubs, x),  x += Attn(x, z),  x += MLP(norm(x)).

    With one hub the second softmax is trivial: every token gets the same vector, and the MLP has to do the matching.

    Args:
        hubs: M >= 1.
    Cost: O(T·M·E + T·E²).
    """

    causal = False

    def __init__(self, context: FlowContext, *, hubs: int = 16) -> None:
        super().__init__(context)
        if hubs < 1:
            raise ConfigError(f"flow perceiver: hubs={hubs}; expected >= 1")
        width = context.width
        self.hubs = nn.Parameter(torch.randn(hubs, width))
        self.norm = nn.LayerNorm(width)
        self.gather, self.spread = CrossAttention(width, context.heads), CrossAttention(width, context.heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm(x)
        z = self.gather(self.hubs.expand(x.shape[0], -1, -1), inside)
        x = x + self.spread(inside, z)
        return x + self.mlp(x)
