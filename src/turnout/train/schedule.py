"""What a schedule of the routing pressure is, and the simplest one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from turnout.train.config import JointConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Training averages since the last look.

    Attributes:
        steps: how many.
        loss: task loss; accuracy: of the targets, None when the task has none.
        usage: fraction of slots that the gates take without noise, as in evaluation.
    """

    steps: int
    loss: float
    accuracy: float | None
    usage: float


class Schedule:
    """Decides the phase, lambda, the sequence length and when training ends.

    Attributes:
        phase: name shown and logged.
        cost: lambda in force.
        quadratic, target: weight and usage target of the quadratic term (budget only).
        undecided: weight of gates that hesitate (budget only).
        length: sequence length now; None = the task's own.
        done: True ends the run.
        solved: False once explore has failed.
        content: False while a guard objects; the loop then trains densely, because a closed gate can only be reopened
            by the gradient that the dense phase gives it.
    """

    phase = "joint"
    penalty = "per_gate"
    cost = 0.0
    quadratic = 0.0
    target = 1.0
    undecided = 0.0
    length: int | None = None
    done = False
    solved = True
    content = True
    request = ""
    total_steps: int = 1
    steps = 0

    def anneal(self) -> float:
        """Fraction of the learning rate under cosine decay: 1 at the start, 0.1 at the last step."""
        return cosine(self.steps / self.total_steps)

    def steps_left(self) -> int | None:
        """Steps until the end, when that is known."""
        return None

    def on_interval(self, seen: Interval) -> list[str]:
        """Look at one logging interval; returns events worth a line in the metrics."""
        raise NotImplementedError

    def on_eval(self, accuracy: float | None, loss: float) -> list[str]:
        """Look at one evaluation; returns events."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; every attribute that is not fixed by the config."""
        return {k: v for k, v in vars(self).items() if k != "config"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)


class Joint(Schedule):
    """A constant cost from the first step."""

    def __init__(self, config: JointConfig) -> None:
        self.config = config
        self.penalty, self.cost, self.total_steps = config.penalty, config.cost, config.steps
        self.steps = 0

    @classmethod
    def idle(cls) -> Joint:
        """No pressure, no end: for measurements."""
        return cls(JointConfig(cost=0.0))

    def steps_left(self) -> int:
        return self.config.steps - self.steps

    def on_interval(self, seen: Interval) -> list[str]:
        self.steps += seen.steps
        self.done = self.steps >= self.config.steps
        return []

    def on_eval(self, accuracy: float | None, loss: float) -> list[str]:
        solve_at = self.config.solve_at
        if accuracy is None or solve_at is None or accuracy < solve_at or self.done:
            return []
        self.done = True
        return [f"joint -> end: solved at {accuracy:.4f} after {self.steps} steps"]


def cosine(progress: float) -> float:
    """From 1 at progress 0 to 0.1 at progress 1 and after, along half a cosine."""
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, max(0.0, progress)))


def wsd(progress: float) -> float:
    """1 up to progress 0.8, then a straight line to 0.1 at progress 1."""
    return 1.0 - 0.9 * min(1.0, max(0.0, progress - 0.8) / 0.2)
