"""Content routing by a learned index of a few dimensions: cheap scores say which blocks a row reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.ops.choose import best_blocks
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_share, check_window, keys_in_blocks
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
        share: so many rows, a divisor of `block`, read what the first of them chose; a GPU reads for 16 and more at
            once what it reads for one.
        rank: r >= 1. The operator sees heads of D + r dimensions.
        shift: whether Ws exists.
    State: Wc x, Ws x and Wu x of the past, side by side, [B, S, 3r].
    Cost: t / b bounds of 2r multiply-adds for `share` rows, so b ~ sqrt(S) makes it O(S^1.5), and b = share ~ S^(1/3)
        O(S^(4/3)); O(b · (keep + near + 1)) keys a row.
    """

    def __init__(
        self, context: PatternContext, *, block: int = 64, keep: int = 3, near: int = 0, rank: int = 8,
        shift: bool = True, share: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(context)
        if block < 1 or keep < 1 or near < 0 or rank < 1:
            raise ConfigError(
                f"pattern low_rank: block={block}, keep={keep}, near={near}, rank={rank}; expected block, keep and "
                "rank >= 1, and near >= 0"
            )
        check_share("low_rank", share, block)
        self.block, self.keep, self.near, self.shift, self.share = block, keep, near, shift, share
        self.asks = nn.Linear(context.width, rank, bias=False)
        self.holds = nn.Linear(context.width, rank * (2 if shift else 1), bias=False)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        kept = self.holds.out_features + self.asks.out_features
        return torch.zeros(batch, max_len, kept, device=device, dtype=dtype)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        asks, made = self.asks(x), self.holds(x)
        first, asked = at[:: self.share], asks[:, :: self.share]
        if state is not None:
            state.index_copy_(1, at, torch.cat([made, asks], -1).to(state.dtype))
            made, kept = state[:, :length].to(asks.dtype).split([made.shape[-1], asks.shape[-1]], -1)
            first = at - at % self.share
            asked = kept.index_select(1, first)
        holds = self._shifted(made)
        count = (first // self.block - self.near).clamp(min=0)[None, :, None]
        ends = self._ends(holds.detach())[:, :, None]
        lists = best_blocks(_signed(asked.detach())[:, :, None], ends, count, self.keep)
        if state is None and self.share > 1:
            lists = lists.repeat_interleave(self.share, 1)[:, : len(at)]
        blocks = BlockLists(size=self.block, near=self.near, share=self.share, lists=lists)
        return Reach(blocks=blocks, index=(asks, holds))

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
