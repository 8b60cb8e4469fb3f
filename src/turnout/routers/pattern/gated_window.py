"""Which heads may read far: relaxed gates under a budget."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Blend, Reach

_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_START = 4.25


@PATTERNS.register("gated_window")
class GatedWindowPattern(Pattern):
    """o = z o_full + (1 - z) o_window for each kv head, z hard concrete (Louizos et al. 2018; PruLong 2025).

        loss + l1 (s - t) + l2 (s - t)^2      s = expected share of heads with z = 0, l1 and l2 are ascended

    The share wanted, t, grows to `closed`. In evaluation the heads with the smallest gates, a share t of a layer, read
    their window alone.

    Args:
        size, sinks: of the window.
        closed: share of kv heads that must read a window alone, in (0, 1].
        steps: training passes in which t grows from 0 to `closed`, >= 1.
        speed: the gate's logit and multipliers move so many times as fast as other parameters, > 0.
    """

    # paper: one budget for all layers and a learning rate of its own; here a budget a layer, and `speed`.

    done: Tensor

    def __init__(
        self, context: PatternContext, *, size: int = 64, sinks: int = 4, closed: float = 0.5, steps: int = 500,
        speed: float = 50.0,
    ) -> None:  # fmt: skip
        super().__init__(context)
        if size < 1 or sinks < 0 or not 0 < closed <= 1 or steps < 1 or not speed > 0:
            raise ConfigError(
                f"pattern gated_window: size={size}, sinks={sinks}, closed={closed}, steps={steps}, speed={speed}; "
                "expected size, steps >= 1, sinks >= 0, 0 < closed <= 1 and speed > 0"
            )
        self.size, self.sinks, self.closed, self.steps, self.speed = size, sinks, closed, steps, speed
        spread = torch.linspace(-0.25, 0.25, context.kv_heads)
        self.gate = nn.Parameter((_START + spread[torch.randperm(context.kv_heads)]) / speed)
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.register_buffer("done", torch.zeros(()))

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        near, logit = Reach(window=self.size, sinks=self.sinks), self.speed * self.gate
        if not self.training:
            return Reach(blend=Blend(z=logit, far=Reach(), near=near, open=self.open_heads()))
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.done += 1
        if mode.sample:
            noise = mode.uniform(logit.shape, x.device).clamp(1e-6, 1 - 1e-6)
            logit = (logit + torch.logit(noise)) / _BETA
        z = (logit.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        return Reach(blend=Blend(z=z, far=Reach(), near=near, open=None))

    def target(self) -> Tensor:
        """Share of heads that must be closed by now."""
        return self.closed * (self.done / self.steps).clamp(max=1)

    def open_heads(self) -> tuple[bool, ...]:
        """Which kv heads read everything: all but the share of the budget with the smallest gates."""
        heads = self.context.kv_heads
        n_closed = round(float(self.target()) * heads)
        closed = set(self.gate.detach().argsort()[:n_closed].tolist())
        return tuple(head not in closed for head in range(heads))

    def penalty(self) -> Tensor | None:
        shut = 1 - (self.speed * self.gate - _BETA * math.log(-_LOW / _HIGH)).sigmoid().mean()
        excess = shut - self.target()
        # The value of the multipliers, and minus their gradient: the optimiser, which descends, ascends them.
        l1, l2 = self.speed * (2 * self.multipliers.detach() - self.multipliers)
        return l1 * excess + l2 * excess.square()

    def mean_keys(self, length: int) -> float:
        # At the end of the schedule, which a model without weights can tell too.
        full = 1 - round(self.closed * self.context.kv_heads) / self.context.kv_heads
        return full * (length + 1) / 2 + (1 - full) * keys_in_window(length, self.size, self.sinks)

    def check_length(self, length: int) -> None:
        check_window("gated_window", "size + sinks", self.size + self.sinks, length)
