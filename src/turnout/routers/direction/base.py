"""The interface of direction routers (how much of each direction is removed?), and their registry.

A router is one file in this folder: a class with `@DIRECTION_ROUTERS.register("name")`.

B batch, T tokens, E width, H heads, K directions of a head, D head dim, N routing groups, R rows taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, ShapeError
from turnout.routers.direction.checks import all_true
from turnout.spec import Registry

DIRECTION_ROUTERS = Registry("direction router", "turnout.routers.direction")


class Cut(NamedTuple):
    """The decision *which directions*: unit vectors [H, K, D], and r [B, T or R, H, K], how much of each is removed."""

    directions: Tensor
    amount: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionContext:
    """What the model tells every direction router it builds: E, H, D, the layer's index and the model's seed."""

    width: int
    heads: int
    head_dim: int
    layer: int = 0
    seed: int = 0


class DirectionRouter(nn.Module):
    """Base: K unit directions a head, and r in [0, 1] for each.

        o' = o − Σ_k r_k <o, d_k> d_k        d = vectors / |vectors|                  (Taylor 2026, arXiv 2603.14923)

    The vectors are normalised in every forward pass and drawn from N(0, 1), "no special init"; they are not forced to
    be orthogonal. Subclasses implement `decide`. `causal = False` says that r at t reads tokens after t; causal models
    refuse it unless it is told to `leak`.

    Args:
        k: K, 1..D.
    Attributes:
        raw: reads the residual stream that enters the block (published) and not the mixer's normed input.
    """

    causal: bool = True
    learned: ClassVar[bool] = True
    causal_variant: str = ""
    raw: bool = True
    leaks: bool = False

    def __init__(self, context: DirectionContext, *, k: int = 4) -> None:
        super().__init__()
        if not 1 <= k <= context.head_dim:
            raise ConfigError(
                f"k={k} directions a head; expected 1 <= k <= head dim = {context.head_dim} "
                "(directions='none' removes nothing)"
            )
        self.context, self.k = context, k
        self.vectors = nn.Parameter(torch.randn(context.heads, k, context.head_dim))

    def unit(self) -> Tensor:
        """d, [H, K, D]; on the CPU a vector without a direction is refused. Cost O(H·K·D)."""
        size = self.vectors.detach().norm(dim=-1)
        if not all_true((size > 0) & size.isfinite()):
            raise ShapeError(
                f"direction vectors of layer {self.context.layer} have lengths {size.min():.3g}..{size.max():.3g}; "
                "expected > 0 and finite: a zero vector has no direction"
            )
        return nn.functional.normalize(self.vectors, dim=-1)

    @torch.no_grad()
    def set_directions(self, directions: Tensor) -> None:
        """Replace the directions, to test others than the learned ones.

        Args:
            directions: [H, K, D], of unit length.
        Raises:
            ShapeError: another shape, or vectors whose length is not 1 to the precision of their dtype.
        """
        if directions.shape != self.vectors.shape:
            raise ShapeError(f"directions {list(directions.shape)}; expected [H, K, D] = {list(self.vectors.shape)}")
        size = directions.double().norm(dim=-1)
        off = (size - 1).abs()
        if not bool((off <= 4 * directions.shape[-1] ** 0.5 * torch.finfo(directions.dtype).eps).all()):
            raise ShapeError(
                f"directions have lengths {size.min():.6g}..{size.max():.6g}; expected 1: "
                "use torch.nn.functional.normalize(directions, dim=-1)"
            )
        self.vectors.copy_(directions)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Memory before the first token; None when it has none."""
        return None

    def decide(self, source: Tensor, state: Any, rows: Tensor | None) -> tuple[Tensor, Any]:
        """r [B, T, H, K] (of the rows: [B, R, H, K]) from `source` [B, T, E], and the state after it."""
        raise NotImplementedError

    def forward(self, source: Tensor, *, state: Any = None, rows: Tensor | None = None) -> tuple[Tensor, Any]:
        """How much of each direction to remove.

        Args:
            source: [B, T, E], the residual stream or the normed input (`raw`).
            state: from `init_state` or the last call; None starts a sequence.
            rows: int64 [B, N, R] in 0..T-1, the only tokens wanted; group n decides for heads n·H/N and following.
        Returns:
            r, and the state after the last token.
        """
        amount, state = self.decide(source, state, rows)
        if not all_true(amount.isfinite()):
            raise ShapeError(
                f"r of layer {self.context.layer} holds NaN; its input or the router's weights are not finite: look at "
                "the layers below, or lower the learning rate"
            )
        return amount, state

    def constant(self, amount: Tensor, source: Tensor, rows: Tensor | None) -> Tensor:
        """r [H, K] for every token or row."""
        count = source.shape[1] if rows is None else rows.shape[-1]
        return amount.to(source.dtype).expand(source.shape[0], count, -1, -1)

    def flops(self, length: int, rows: float) -> float:
        """Forward multiply-adds × 2: the two products with the directions, for `rows` rows of one sequence."""
        return 4.0 * rows * self.vectors.numel()
