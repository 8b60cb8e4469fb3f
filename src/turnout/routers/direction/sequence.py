"""Sequence-pooled direction router, as published. Not causal, and says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import UnsupportedError
from turnout.routers.direction.base import DIRECTION_ROUTERS, DirectionContext
from turnout.routers.direction.mlp import MLPDirectionRouter


@DIRECTION_ROUTERS.register("sequence")
class SequenceDirectionRouter(MLPDirectionRouter):
    """r = sigmoid(temperature · MLP(mean of x over the whole sequence)), one r for all its tokens
                                                                              (Taylor 2026, arXiv 2603.14923)

    Under teacher forcing r at t has seen the tokens after t, so causal models refuse it.

    Args:
        leak: True lets a causal model train with it all the same, to measure the published number.
        stale: True decodes with the mean of what was seen so far while keys and values keep the r of their own step:
            what a cache makes of the method, and not what it was trained as. Otherwise decoding is refused.
    """

    causal = False
    causal_variant = "prefix"

    def __init__(
        self, context: DirectionContext, *, k: int = 4, hidden: int = 512, depth: int = 4, temperature: float = 5.0,
        source: str = "residual", leak: bool = False, stale: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(context, k=k, hidden=hidden, depth=depth, temperature=temperature, source=source)
        self.leaks, self.stale = leak, stale

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        if not self.stale:
            raise UnsupportedError(
                "directions 'sequence' cannot decode with a cache: every new token changes r and so every earlier "
                "output, key and value; call the model on the whole sequence for each token, use 'prefix', or write "
                "sequence:stale=true for what a cache makes of it"
            )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        total = torch.zeros(batch, self.context.width, device=device, dtype=wide)
        return total, torch.zeros(batch, device=device, dtype=wide)

    def pool(self, source: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:
            return source.mean(1, keepdim=True), None
        total = state[0] + source.to(state[0].dtype).sum(1)
        count = state[1] + source.shape[1]
        return (total / count[:, None]).to(source.dtype)[:, None], (total, count)

    def evaluations(self, length: int, rows: float) -> float:
        return 1.0
