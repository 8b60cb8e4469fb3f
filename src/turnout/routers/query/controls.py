"""Controls: query routers that decide without learning, behind the same interface as the learned ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.routers.mode import RoutingMode
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.gating import Route


class _Control(QueryRouter):
    """A control decides from positions and hints alone: `take` returns bool [B, T, 1 or G]. State: tokens seen."""

    learned = False

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return 0

    def take(self, positions: Tensor, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        start = state or 0
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        taken = self.take(positions, x, mode, hint).expand(*x.shape[:2], self.context.groups)
        return Route.fixed(taken, x.dtype), start + x.shape[1]


@QUERY_ROUTERS.register("always")
class AlwaysRouter(_Control):
    """Every token attends: dense attention behind the routed interface."""

    packs = True

    def take(self, positions: Tensor, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> Tensor:
        return torch.ones_like(positions, dtype=torch.bool)[None, :, None]


@QUERY_ROUTERS.register("never")
class NeverRouter(_Control):
    """No token attends: the local track alone."""

    packs = True

    def take(self, positions: Tensor, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> Tensor:
        return torch.zeros_like(positions, dtype=torch.bool)[None, :, None]


@QUERY_ROUTERS.register("random")
class RandomRouter(_Control):
    """Each token attends with probability p, whatever it holds.

    Training draws fresh gates from the gate generator. Evaluation hashes (seed, layer, sequence, position), so that
    decoding step by step repeats the whole pass exactly.

    Args:
        p: probability, in [0, 1].
    """

    packs = True

    def __init__(self, context: RouterContext, *, p: float = 0.0625) -> None:
        super().__init__(context)
        if not 0 <= p <= 1:
            raise ConfigError(f"router random: p={p}; expected 0 <= p <= 1")
        self.p = p

    def take(self, positions: Tensor, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> Tensor:
        shape = (*x.shape[:2], self.context.groups)
        if mode.sample:
            return mode.uniform(shape, x.device) < self.p
        sequence = torch.arange(shape[0], device=x.device)[:, None, None]
        group = torch.arange(shape[2], device=x.device)
        key = (sequence * 4096 + group) * 2**32 + positions[None, :, None]
        return _uniform_hash(key, self.context.seed * 1009 + self.context.layer) < self.p


def _uniform_hash(key: Tensor, salt: int) -> Tensor:
    """Uniform float64 in [0, 1) from int64 keys: the splitmix64 finaliser (Steele et al. 2014), wrapping products."""
    z = key + (salt + 1) * 0x1E3779B97F4A7C15 % 2**62
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


@QUERY_ROUTERS.register("periodic")
class PeriodicRouter(_Control):
    """One token in `period` attends: (position - offset) % period < 1, positions in float64.

    Args:
        period: >= 1; usage is 1 / period, so that 1.5 takes two tokens of three.
        offset: 0 <= offset < period.
    """

    def __init__(self, context: RouterContext, *, period: float = 16.0, offset: float = 0.0) -> None:
        super().__init__(context)
        if not period >= 1 or not 0 <= offset < period:
            raise ConfigError(
                f"router periodic: period={period:g}, offset={offset:g}; expected period >= 1 and 0 <= offset < period"
            )
        self.period, self.offset = period, offset

    def take(self, positions: Tensor, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> Tensor:
        return ((positions.double() - self.offset) % self.period < 1)[None, :, None]


@QUERY_ROUTERS.register("oracle")
class OracleRouter(_Control):
    """The task says who attends: the upper bound of what a query router can know.

    Args:
        layer: the only layer that opens; −1 opens the hinted tokens in every layer.
    Raises:
        ConfigError: the model has no such layer; or at the first call without a hint (the task has no oracle).
    """

    needs_hint = True

    def __init__(self, context: RouterContext, *, layer: int = -1) -> None:
        super().__init__(context)
        if not -1 <= layer < (context.layers or layer + 1):
            raise ConfigError(
                f"router oracle: layer={layer}; expected 0..{(context.layers or 1) - 1}, or -1 for all layers"
            )
        self.layer = layer

    def take(self, positions: Tensor, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> Tensor:
        if hint is None:
            raise ConfigError(
                "router oracle got no hint; expected bool [B, T] from a task with has_oracle=True "
                "(recall, recall_hard): choose such a task or another router"
            )
        if hint.shape != x.shape[:2]:
            raise ShapeError(f"router oracle: hint {tuple(hint.shape)}; expected [B, T] = {tuple(x.shape[:2])}")
        here = self.layer in (-1, self.context.layer)
        return (hint & here)[..., None]


@QUERY_ROUTERS.register("shuffled")
class ShuffledRouter(QueryRouter):
    """A learned router's decisions given to the next sequence of the batch: right amount, right places on average,
    wrong content.

    Args:
        inner: spec of the router whose decisions are handed on.
    Raises:
        UnsupportedError: a batch of one sequence has no other sequence to take decisions from.
    """

    learned = False
    least_batch = 2

    def __init__(self, context: RouterContext, *, inner: str = "linear") -> None:
        super().__init__(context)
        self.inner = QUERY_ROUTERS.build(inner, context=context)
        # Handing decisions to another sequence does not make them causal, nor spare them the hint.
        self.causal, self.causal_variant = self.inner.causal, f"shuffled:inner={self.inner.causal_variant}"
        self.needs_hint = self.inner.needs_hint

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return self.inner.init_state(batch, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        if x.shape[0] < 2:
            raise UnsupportedError("router shuffled got a batch of 1; expected >= 2 sequences to shuffle between")
        route, state = self.inner(x, mode=mode, state=state, hint=hint)
        gate, weight, taken = (torch.roll(t, 1, dims=0) for t in (route.gate, route.weight, route.taken))
        return Route(gate=gate, weight=weight, taken=taken), state
