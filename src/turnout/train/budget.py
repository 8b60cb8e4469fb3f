"""Budget: hold the usage at a target by a Lagrange multiplier."""

from __future__ import annotations

import math

from turnout.train.config import LOG_USAGE, LOG_USAGE_BY_LAYER, BudgetConfig
from turnout.train.schedule import Interval, Schedule


class Budget(Schedule):
    """The method of multipliers on the log of the usage, see `BudgetConfig`.

    The multiplier may be negative: below the target it pays for open gates.
    """

    phase = "budget"

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.penalty = LOG_USAGE_BY_LAYER if config.by_layer else LOG_USAGE
        self.total_steps = config.steps
        self.steps = 0
        self.quadratic = 0.0

    def steps_left(self) -> int:
        return self.config.steps - self.steps

    def on_eval(self, accuracy: float | None, loss: float) -> list[str]:
        solve_at, begin = self.config.solve_at, math.ceil(self.config.warmup * self.config.steps)
        if accuracy is None or solve_at is None or accuracy < solve_at or self.steps >= begin:
            return []
        early, self.steps = self.steps, begin
        return [f"warm-up ends: solved at {accuracy:.4f} after {early} steps"]

    def on_interval(self, seen: Interval) -> list[str]:
        config = self.config
        self.steps += seen.steps
        self.done = self.steps >= config.steps
        progress = (self.steps / config.steps - config.warmup) / config.ramp if config.ramp else 1.0
        if self.steps < config.warmup * config.steps:
            return []
        self.quadratic = config.quadratic
        self.target = config.usage ** min(1.0, max(0.0, progress))
        # At most one: a burst of closed gates must not wind the multiplier up.
        self.undecided = config.undecided if progress >= 1 else 0.0
        error = math.log(max(seen.usage, 1e-9) / self.target)
        self.cost += config.rate * seen.steps * min(1.0, max(-1.0, error))
        return []
