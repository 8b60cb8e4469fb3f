"""Flows: what happens to token representations before a content router compares them. One mechanism a file.

B batch, T tokens, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from turnout.spec import Registry

FLOWS = Registry("flow", "turnout.layers.flow")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowContext:
    """What every flow is told.

    Args:
        width: E.
        length: T, for flows with a table of positions.
        heads: attention heads.
    """

    width: int
    length: int
    heads: int = 4


class Flow(nn.Module):
    """Base: `forward` maps [B, T, E] to [B, T, E].

    A flow whose output at t reads anything after t says `causal = False`; causal language models refuse it. A flow has
    no data-dependent control flow, so that many copies of it can run as one (`torch.func.vmap`).
    """

    causal: bool = True
    pairwise: ClassVar[bool] = False

    def __init__(self, context: FlowContext) -> None:
        super().__init__()
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        """Representations of the tokens `x` [B, T, E]."""
        raise NotImplementedError


class FlowBlock(nn.Module):
    """Pre-norm block: x + mix(norm(x)), then x + MLP(norm(x)) with hidden width 4E (or none).

    Args:
        mix: [B, T, E] -> [B, T, E].
        mlp: False leaves the second half out.
    """

    def __init__(self, width: int, mix: nn.Module, *, mlp: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = mix
        self.mlp = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            if mlp
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x if self.mlp is None else x + self.mlp(x)
