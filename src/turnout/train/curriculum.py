"""Curriculum: explore, ramp behind a guard, hold, grow, settle."""

from __future__ import annotations

import math

from turnout.train.config import CurriculumConfig
from turnout.train.schedule import Interval, Schedule, cosine

# A guard that never lets go must not hold a run for ever.
PATIENCE = 4


class Curriculum(Schedule):
    """The phases of `CurriculumConfig`, driven by what evaluation shows.

    lambda = cost · r, where r in [0, 1] is how far the ramp has come (rounded up to a stair when there are stairs).
    """

    def __init__(self, config: CurriculumConfig) -> None:
        self.config = config
        self.penalty = config.penalty
        self.phase = "explore"
        self.length = config.lengths[0] if config.lengths else None
        self.stage = 0
        self.steps = 0
        self.phase_steps = 0
        self.ramp = 0.0
        self.kept_ramp = 0.0
        self.speed = 1.0
        self.retried = False
        self.calm = 1.0
        self.reference_loss: float | None = None
        growths = max(0, len(config.lengths) - 1)
        self.total_steps = config.explore_steps + config.ramp_steps + config.hold_steps + growths * config.grow_steps
        self.total_steps += config.settle_steps if growths else 0

    def anneal(self) -> float:
        """Cosine over *hold*; again over each *grow* stage and *settle*, but its later part only; full rate before.

        The ramp moves decisions and needs large steps; what is decided should then settle on a firm margin. Whatever
        went wrong, a collapse or a length not solved, is tried again with smaller steps.
        """
        if self.phase == "hold":
            return self.calm * cosine(self.steps / max(1, self.config.hold_steps))
        if self.phase == "grow":
            return self.calm * cosine(0.5 + 0.5 * self.steps / max(1, self.config.grow_steps))
        if self.phase == "settle":
            return self.calm * cosine(0.7 + 0.3 * self.steps / max(1, self.config.settle_steps))
        return self.calm

    def on_interval(self, seen: Interval) -> list[str]:
        config = self.config
        self.phase_steps += seen.steps
        # While the guard objects, hold waits: the learning rate stays up and the gates get time to reopen.
        self.steps += seen.steps if self.content or self.phase not in ("hold", "settle") else 0
        if self.phase == "explore":
            return self._end_explore(seen)
        self._move_ramp(seen.steps)
        if self.phase == "ramp" and self.ramp >= 1:
            return [self._enter("hold", f"lambda reached {config.cost:g}")]
        if self.phase == "ramp" and self.phase_steps >= PATIENCE * config.ramp_steps:
            return [self._enter("hold", f"the guard kept lambda at {self.cost:g} for {PATIENCE} times the ramp")]
        limits = {"hold": config.hold_steps, "grow": config.grow_steps, "settle": config.settle_steps}
        limit = limits.get(self.phase, math.inf)
        if self.phase == "grow" and self.steps >= limit:
            return [self._unsolved()]
        if self.steps >= limit and self.content:
            return [self._next_length(f"{self.phase_steps} steps done")]
        if self.phase_steps >= PATIENCE * limit:
            return [self._next_length(f"the guard objected for {self.phase_steps} steps")]
        return []

    def on_eval(self, accuracy: float | None, loss: float) -> list[str]:
        self.request = ""
        if self.phase == "explore":
            solve_at = self.config.solve_at
            self.reference_loss = loss
            if accuracy is not None and solve_at is not None and accuracy >= solve_at:
                return [self._enter("ramp", f"solved at {accuracy:.4f} after {self.steps} steps")]
            return []
        if accuracy is not None and self.phase in ("ramp", "hold") and accuracy < self.config.stop_below:
            self.done = True
            return [f"{self.phase} -> end: evaluation accuracy {accuracy:.4f} < {self.config.stop_below:g}"]
        # An evaluation right after the length changed still graded the old one.
        if self.phase == "grow" and self.phase_steps == 0:
            return []
        if accuracy is not None and self.phase == "grow" and accuracy >= self.config.grow_at:
            self.content, self.request, self.kept_ramp = True, "keep", self.ramp
            return [self._next_length(f"length {self.length} solved at {accuracy:.4f} after {self.steps} steps")]
        return self._guard(accuracy, loss)

    def _guard(self, accuracy: float | None, loss: float) -> list[str]:
        config = self.config
        if config.guard == 0:
            return []
        if accuracy is not None:
            self.content, collapsed = accuracy >= config.guard, accuracy < config.back_off
        else:
            excess = loss / (self.reference_loss or loss) - 1
            self.content, collapsed = excess <= config.guard_loss, excess > 4 * config.guard_loss
        if self.content:
            self.request, self.kept_ramp = "keep", self.ramp
        # Further lengths are new ground: low accuracy there is no collapse until the stage had its time.
        if not collapsed or self.phase == "grow":
            return []
        # Half of what was borne, and again half if that collapses too: the kept weights may already be at the edge.
        self.kept_ramp /= 2
        self.request, self.ramp, self.speed = "restore", self.kept_ramp, max(1 / 8, self.speed / 2)
        self.calm = max(1 / 8, 0.7 * self.calm)
        shown = f"accuracy {accuracy:.4f}" if accuracy is not None else f"loss {loss:.4f}"
        return [f"collapse ({shown}): back to the kept weights and lambda {config.cost * self.ramp:g}"]

    def _end_explore(self, seen: Interval) -> list[str]:
        config = self.config
        if self.steps < config.explore_steps:
            return []
        if config.solve_at is None:
            return [self._enter("ramp", f"{config.explore_steps} steps done")]
        self.done, self.solved = True, False
        return [f"explore ended unsolved after {self.steps} steps (train accuracy {seen.accuracy})"]

    def _move_ramp(self, steps: int) -> None:
        direction = self.speed if self.content else -0.5
        self.ramp = min(1.0, max(0.0, self.ramp + direction * steps / max(1, self.config.ramp_steps)))
        stairs = self.config.stairs
        # paper: the code's epoch e of 20 trains at lambda·e/20, so the first stair is already above 0.
        r = min(1.0, (math.floor(self.ramp * stairs) + 1) / stairs) if stairs else self.ramp
        # What is shut by now stays shut under less; the gates that are needed move away from the edge.
        self.cost = self.config.cost * r / (4 if self.phase == "settle" else 1)

    def _enter(self, phase: str, why: str) -> str:
        event = f"{self.phase} -> {phase}: {why}"
        self.phase, self.steps, self.phase_steps = phase, 0, 0
        return event

    def _unsolved(self) -> str:
        """A stage's time is up: the weights that solved the length before return, for one calmer try, then for good."""
        self.request = "restore"
        if self.retried:
            return self._next_length(f"length {self.length} unsolved twice: back to the kept weights")
        self.retried, self.calm = True, self.calm / 4
        tried, self.steps, self.phase_steps = self.steps, 0, 0
        return (
            f"length {self.length} unsolved after {tried} steps: again from the kept weights at a quarter of the rate"
        )

    def _next_length(self, why: str) -> str:
        self.stage += 1
        self.retried = False
        if self.phase == "grow" and self.stage == len(self.config.lengths) and self.config.settle_steps:
            return self._enter("settle", why)
        if self.stage >= len(self.config.lengths):
            self.done = True
            return f"{self.phase} -> end: {why}"
        event = self._enter("grow", why)
        self.content = True
        self.length = self.config.lengths[self.stage]
        return f"{event}; length {self.length}"
