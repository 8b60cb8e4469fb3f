"""What the learned direction routers share: an MLP from a pooled residual stream to r.

B batch, T tokens, E width, H heads, K directions of a head, N routing groups, R rows taken.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.routers.direction.base import DirectionContext, DirectionRouter

SOURCES = ("residual", "normed")


class MLPDirectionRouter(DirectionRouter):
    """r = sigmoid(temperature · MLP(pool(x))), the MLP E -> hidden x (depth − 1) -> H·K with GELU between.

    Subclasses say what is pooled. Published: hidden 512, depth 4, temperature 5 (a factor that pushes r toward 0 or 1),
    PyTorch's default initialisation, which gives r = 0.5 at step 0.

    Args:
        k: directions a head; hidden, depth: of the MLP; depth counts its linear layers.
        temperature: > 0, multiplies the logit.
        source: "residual" as published, or "normed", what the mixer reads.
    Cost: E·hidden + (depth − 2)·hidden² + hidden·H·K multiply-adds for each vector that `pool` hands on.
    """

    def __init__(
        self, context: DirectionContext, *, k: int = 4, hidden: int = 512, depth: int = 4, temperature: float = 5.0,
        source: str = "residual",
    ) -> None:  # fmt: skip
        super().__init__(context, k=k)
        if hidden < 1 or depth < 1 or not temperature > 0:
            raise ConfigError(
                f"direction router: hidden={hidden}, depth={depth}, temperature={temperature}; "
                "expected hidden >= 1, depth >= 1, temperature > 0"
            )
        if source not in SOURCES:
            raise ConfigError(f"direction router: source={source!r}{nearest(source, SOURCES)}")
        self.temperature, self.raw = temperature, source == "residual"
        sizes = [context.width, *[hidden] * (depth - 1), context.heads * k]
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts += [nn.Linear(a, b), nn.GELU()]
        self.net = nn.Sequential(*parts[:-1])

    def pool(self, source: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What the MLP reads, [B, T, E], or [B, 1, E] if it is the same for all tokens; and the state after it."""
        raise NotImplementedError

    def decide(self, source: Tensor, state: Any, rows: Tensor | None) -> tuple[Tensor, Any]:
        pooled, state = self.pool(source, state)
        heads, length = self.context.heads, source.shape[1]
        if pooled.shape[1] == 1 or rows is None:
            count = length if rows is None else rows.shape[-1]
            return self._amount(pooled).expand(-1, count, -1, -1), state
        groups = rows.shape[1]
        picked = torch.stack([_gather(pooled, rows[:, n]) for n in range(groups)], dim=1)
        amount = self._amount(picked)
        if groups == 1:
            return amount[:, 0], state
        # Row list n speaks for the heads of group n only.
        own = amount.unflatten(3, (groups, heads // groups)).diagonal(dim1=1, dim2=3)
        return own.permute(0, 1, 4, 2, 3).flatten(2, 3), state

    def _amount(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(self.temperature * self.net(pooled)).unflatten(-1, (self.context.heads, self.k))

    def flops(self, length: int, rows: float) -> float:
        weights = sum(p.numel() for p in self.net.parameters() if p.ndim == 2)
        return super().flops(length, rows) + 2.0 * weights * self.evaluations(length, rows)

    def evaluations(self, length: int, rows: float) -> float:
        """How often the MLP runs for one sequence."""
        return rows


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, E] at index [B, R] -> [B, R, E]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
