"""Query routing inside a head: rows that an unlearned router takes read everything, the others a window and sinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Reach, Routed
from turnout.routers.query import QUERY_ROUTERS, RouterContext


@PATTERNS.register("routed")
class RoutedPattern(Pattern):
    """Row t reads every s <= t where the router takes it, else t - size < s <= t and s < sinks.

    The turnout of a layer (`RoutedMixer`) chooses between two tracks; this one between two reaches of the same heads,
    so that a model trained with dense attention can be routed as it is.

    Args:
        router: spec of a query router that learns nothing, "bloom:ngram=4" (rows whose last four tokens occurred
            before), "periodic:period=16", "random:p=0.1".
        size: w >= 1; sinks >= 0.
    Raises:
        ConfigError: a router with weights, which nothing trains here, or one that asks the task.
    State: token ids of the past, int64 [B, S, 1].
    Cost: O(w) keys a row and O(t) where it is taken; the rows are sorted once.
    """

    def __init__(
        self, context: PatternContext, *, router: str = "periodic:period=16", size: int = 64, sinks: int = 4
    ) -> None:
        super().__init__(context)
        if size < 1 or sinks < 0:
            raise ConfigError(f"pattern routed: size={size}, sinks={sinks}; expected size >= 1 and sinks >= 0")
        self.near = Reach(window=size, sinks=sinks)
        self.router = QUERY_ROUTERS.build(router, context=RouterContext(width=context.width))
        if self.router.learned or self.router.needs_hint or not self.router.causal:
            raise ConfigError(
                f"pattern routed: router={router!r} learns, asks the task or sees the future; use one that decides "
                "alone: bloom, periodic, random"
            )

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return torch.zeros(batch, max_len, 1, device=device, dtype=torch.int64)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        tokens = mode.tokens
        if state is not None:
            if tokens is not None:
                state.index_copy_(1, at, tokens[..., None])
            tokens = None if tokens is None else state[:, :length, 0]
        # Whole sequences are decided anew: what is remembered are tokens, whatever the router would remember of them.
        seen = x.new_empty(len(x), length, 1)
        route, _ = self.router(seen, mode=replace(mode, tokens=tokens, sample=False))
        return Reach(routed=Routed(taken=route.taken[:, length - x.shape[1] :, 0], near=self.near))

    def mean_keys(self, length: int) -> float:
        period = getattr(self.router, "period", None)
        # A router that looks at the tokens may take every row.
        share = getattr(self.router, "p", 1.0) if period is None else 1 / period
        near = keys_in_window(length, self.near.window or 1, self.near.sinks)
        return share * (length + 1) / 2 + (1 - share) * near

    def check_length(self, length: int) -> None:
        check_window("routed", "size + sinks", (self.near.window or 1) + self.near.sinks, length)
