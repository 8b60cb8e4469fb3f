"""Content routing by a learned index of a few dimensions: cheap scores say which blocks a row reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.ops.choose import best_blocks
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_blocks
from turnout.routers.pattern.reach import BlockLists, Reach


@PATTERNS.register("low_rank")
class LowRankPattern(Pattern):
    """Row t reads its own block, the `near` before it, and the `keep` before those whose bound is highest.

        u_t = Wu x_t,   c_s = Wc x_s + Ws x_{s-1}                               r numbers each, one index a layer
        bound(t, n) = sum_i max(u_ti max_{s in n} c_si, u_ti min_{s in n} c_si)  >= max_{s in n} <u_t, c_s>
        score(t, s) = <q_t, k_s> / sqrt(D) + <u_t, c_s>                         for the keys that are read

    The bound is that of Quest (Tang et al. 2024); the index learns because its scores are added to those of the heads,
    while the choice of blocks carries no gradient. `shift` lets a key be found by what stood before it (Ws), which is
    all that an induction head's first layer does.

    Args:
        block: tokens b of a block; a power of two from 16 on runs in the GPU kernel.
        keep: earlier blocks a row reads, >= 1; near: blocks before its own that it always reads, >= 0.
        rank: r >= 1. The operator sees heads of D + r dimensions.
        shift: whether Ws exists.
    State: Wc x and Ws x of the past, side by side, [B, S, 2r].
    Cost: t / b bounds of 2r multiply-adds a row, so b ~ sqrt(S) makes it O(S^1.5); O(b · (keep + near + 1)) keys a row.
    """

    def __init__(
        self, context: PatternContext, *, block: int = 64, keep: int = 3, near: int = 0, rank: int = 8,
        shift: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(context)
        if block < 1 or keep < 1 or near < 0 or rank < 1:
            raise ConfigError(
                f"pattern low_rank: block={block}, keep={keep}, near={near}, rank={rank}; expected block, keep and "
                "rank >= 1, and near >= 0"
            )
        self.block, self.keep, self.near, self.rank, self.shift = block, keep, near, rank, shift
        self.asks = nn.Linear(context.width, rank, bias=False)
        self.holds = nn.Linear(context.width, rank * (2 if shift else 1), bias=False)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return torch.zeros(batch, max_len, self.holds.out_features, device=device, dtype=dtype)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        asks, made = self.asks(x), self.holds(x)
        if state is not None:
            state.index_copy_(1, at, made.to(state.dtype))
            made = state[:, :length].to(asks.dtype)
        holds = self._shifted(made)
        count = (at // self.block - self.near).clamp(min=0)[None, :, None]
        lists = best_blocks(
            _signed(asks.detach())[:, :, None], self._ends(holds.detach())[:, :, None], count, self.keep
        )
        return Reach(blocks=BlockLists(size=self.block, near=self.near, lists=lists), index=(asks, holds))

    def index(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u and c of whole sequences, [B, T, r] each."""
        return self.asks(x), self._shifted(self.holds(x))

    def bounds(self, asks: Tensor, holds: Tensor) -> Tensor:
        """bound(t, n) for every row and every whole block, [B, T, N]."""
        return _signed(asks) @ self._ends(holds).mT

    def _shifted(self, made: Tensor) -> Tensor:
        """Wc x_s + Ws x_{s-1} from both products, side by side."""
        if not self.shift:
            return made
        here, after = made.chunk(2, -1)
        return here + nn.functional.pad(after, (0, 0, 1, 0))[:, :-1]

    def _ends(self, holds: Tensor) -> Tensor:
        """Largest and smallest c of every whole block, [B, N, 2r]."""
        whole = holds.shape[1] // self.block
        blocks = holds[:, : whole * self.block].unflatten(1, (whole, self.block))
        return torch.cat([blocks.amax(2), blocks.amin(2)], -1)

    def mean_keys(self, length: int) -> float:
        return keys_in_blocks(length, self.block, self.keep, self.near)

    def check_length(self, length: int) -> None:
        check_window("low_rank", "block · (keep + near + 1)", self.block * (self.keep + self.near + 1), length)


def _signed(u: Tensor) -> Tensor:
    """[max(u, 0), min(u, 0)]: its product with [max c, min c] is the bound."""
    return torch.cat([u.clamp(min=0), u.clamp(max=0)], -1)
