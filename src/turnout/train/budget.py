"""Budget: hold the usage at a target by a Lagrange multiplier."""

from __future__ import annotations

from turnout.train.config import BudgetConfig
from turnout.train.schedule import Interval, Schedule


class Budget(Schedule):
    """Dual ascent on the usage, see `BudgetConfig`.

    The error is taken relative to the target, so that one `rate` serves a budget of 50 % and one of 0.5 %. The
    multiplier may be negative: below the target it pays for open gates.
    """

    phase = "budget"
    penalty = "mean_gate"

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.total_steps = config.steps
        self.steps = 0
        self.quadratic = 0.0

    def steps_left(self) -> int:
        return self.config.steps - self.steps

    def on_interval(self, seen: Interval) -> list[str]:
        config = self.config
        self.steps += seen.steps
        self.done = self.steps >= config.steps
        progress = (self.steps / config.steps - config.warmup) / config.ramp if config.ramp else 1.0
        if self.steps < config.warmup * config.steps:
            return []
        self.quadratic = config.quadratic
        self.target = config.usage ** min(1.0, max(0.0, progress))
        error = (seen.usage - self.target) / self.target
        # One step of at most the target's own size: a burst of closed gates must not wind the multiplier up.
        self.cost += config.rate * seen.steps * min(1.0, max(-1.0, error))
        return []
