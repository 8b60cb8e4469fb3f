"""Curriculum: explore, ramp behind a guard, hold, grow."""

from __future__ import annotations

import math

from turnout.train.config import CurriculumConfig
from turnout.train.schedule import Interval, Schedule, cosine


class Curriculum(Schedule):
    """The phases of `CurriculumConfig`, driven by what training and evaluation show.

    lambda = cost · r, where r in [0, 1] is how far the ramp has come (rounded down to a stair when there are stairs).
    """

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.penalty = config.penalty
        self.phase = "explore"
        self.length = config.lengths[0] if config.lengths else None
        self.stage = 0
        self.steps = 0
        self.ramp = 0.0
        self.reference_loss: float | None = None
        growths = max(0, len(config.lengths) - 1)
        self.total_steps = config.explore_steps + config.ramp_steps + config.hold_steps + growths * config.grow_steps

    def anneal(self) -> float:
        """Cosine over *hold*, and again over each *grow* stage from a quarter on; the phases before run at full rate.

        The ramp moves decisions and needs large steps; what is decided should then settle on a firm margin.
        """
        if self.phase == "hold":
            return cosine(self.steps / max(1, self.config.hold_steps))
        if self.phase == "grow":
            return cosine(0.5 + 0.5 * self.steps / max(1, self.config.grow_steps))
        return 1.0

    def on_interval(self, seen: Interval) -> list[str]:
        config = self.config
        self.steps += seen.steps
        if self.phase == "explore":
            self.reference_loss = seen.loss
            if config.solve_at is None and self.steps >= config.explore_steps:
                return [self._enter("ramp", f"{config.explore_steps} steps done")]
            if config.solve_at is not None and self.steps >= config.explore_steps:
                self.done, self.solved = True, False
                return [f"explore ended unsolved after {self.steps} steps (train accuracy {seen.accuracy})"]
            return []
        self._move_ramp(seen)
        if self.phase == "ramp" and self.ramp >= 1:
            return [self._enter("hold", f"lambda reached {config.cost:g}")]
        if self.phase == "ramp" and self.steps >= 4 * config.ramp_steps:
            return [self._enter("hold", f"the guard kept lambda at {self.cost:g} for 4 times the ramp")]
        if self.phase == "hold" and self.steps >= config.hold_steps:
            return [self._next_length(f"{config.hold_steps} steps done")]
        if self.phase == "grow" and self.steps >= config.grow_steps:
            return [self._next_length(f"{config.grow_steps} steps done")]
        return []

    def on_eval(self, accuracy: float | None, loss: float) -> list[str]:
        if accuracy is None:
            return []
        solve_at = self.config.solve_at
        if self.phase == "explore" and solve_at is not None and accuracy >= solve_at:
            return [self._enter("ramp", f"solved at {accuracy:.4f} after {self.steps} steps")]
        if self.phase in ("ramp", "hold") and accuracy < self.config.stop_below:
            self.done = True
            return [f"{self.phase} -> end: evaluation accuracy {accuracy:.4f} < {self.config.stop_below:g}"]
        # An evaluation right after the length changed still graded the old one.
        if self.phase == "grow" and self.steps > 0 and accuracy >= self.config.grow_at:
            return [self._next_length(f"length {self.length} solved at {accuracy:.4f} after {self.steps} steps")]
        return []

    def _move_ramp(self, seen: Interval) -> None:
        direction = self._direction(seen)
        self.content = direction > 0
        self.ramp = min(1.0, max(0.0, self.ramp + direction * seen.steps / max(1, self.config.ramp_steps)))
        stairs = self.config.stairs
        # paper: the code's epoch e of 20 trains at lambda·e/20, so the first stair is already above 0.
        r = min(1.0, (math.floor(self.ramp * stairs) + 1) / stairs) if stairs else self.ramp
        self.cost = self.config.cost * r

    def _direction(self, seen: Interval) -> float:
        config = self.config
        if config.guard == 0:
            return 1.0
        if seen.accuracy is not None:
            return 1.0 if seen.accuracy >= config.guard else 0.0 if seen.accuracy >= config.back_off else -2.0
        ratio = seen.loss / (self.reference_loss or seen.loss)
        return 1.0 if ratio <= 1 + config.guard_loss else 0.0 if ratio <= 1 + 2 * config.guard_loss else -2.0

    def _enter(self, phase: str, why: str) -> str:
        event = f"{self.phase} -> {phase}: {why}"
        self.phase, self.steps = phase, 0
        return event

    def _next_length(self, why: str) -> str:
        self.stage += 1
        if self.stage >= len(self.config.lengths):
            self.done = True
            return f"{self.phase} -> end: {why}"
        event = self._enter("grow", why)
        self.length = self.config.lengths[self.stage]
        return f"{event}; length {self.length}"
