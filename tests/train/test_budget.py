from __future__ import annotations

import bisect
import json
import math
import random

import pytest

from turnout.train.budget import Budget
from turnout.train.config import BudgetConfig
from turnout.train.schedule import Interval
from turnout.train.schedules import build_schedule

STEPS = 3000


class Plant:
    """Gates that answer to a price: each is worth some loss, and opens when its worth is above the price.

    The usage follows what the price asks for with a lag of about 100 steps, and is seen with 3 % noise. `bias` is the
    usage that evaluation sees by the mean probability.
    """

    def __init__(self, n: int = 20000, lag_steps: float = 100, seed: int = 0, bias: float = 1.0) -> None:
        self.bias = bias
        self.random = random.Random(seed)
        # A few gates are worth much and most are worth little, as tokens are.
        self.worth = sorted(math.exp(self.random.gauss(-1.0, 1.5)) for _ in range(n))
        self.usage = 1.0
        self.lag_steps = lag_steps

    def step(self, schedule: Budget, steps: int) -> float:
        """Usage seen after some steps under the schedule's pressure."""
        for _ in range(steps):
            # The price of a gate is the slope of l1 · x + l2 · x^2 in the usage, x = log(usage / target).
            excess = math.log(self.usage / schedule.target)
            price = (schedule.cost + 2 * schedule.quadratic * excess) / self.usage
            wanted = 1 - bisect.bisect(self.worth, price) / len(self.worth)
            self.usage += (max(wanted, 1e-4) - self.usage) / self.lag_steps
        return self.bias * self.usage * (1 + self.random.gauss(0.0, 0.03))


def run(config: BudgetConfig, plant: Plant, interval: int = 25) -> list[float]:
    schedule = Budget(config)
    usages = []
    while not schedule.done:
        usages.append(plant.step(schedule, interval))
        schedule.on_interval(Interval(steps=interval, loss=1.0, accuracy=None, usage=usages[-1]))
    return usages


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("target", [0.5, 0.1, 0.02])
def test_the_usage_lands_within_a_tenth_of_what_was_asked(target: float, bias: float) -> None:
    usages = run(BudgetConfig(usage=target, steps=STEPS), Plant(bias=bias))
    last = usages[-20:]
    assert sum(last) / len(last) == pytest.approx(target, rel=0.1)


def test_nothing_is_charged_before_the_warm_up_is_over() -> None:
    schedule = Budget(BudgetConfig(usage=0.1, steps=100, warmup=0.3))
    for _ in range(2):
        schedule.on_interval(Interval(steps=10, loss=1.0, accuracy=None, usage=1.0))
        assert schedule.cost == 0.0 and schedule.quadratic == 0.0 and schedule.target == 1.0
    for _ in range(2):
        schedule.on_interval(Interval(steps=10, loss=1.0, accuracy=None, usage=1.0))
    assert schedule.cost > 0.0 and schedule.quadratic == 1.0


def test_the_target_falls_geometrically_to_the_budget_and_stays() -> None:
    schedule = Budget(BudgetConfig(usage=0.01, steps=100, warmup=0.0, ramp=0.5))
    targets = []
    while not schedule.done:
        schedule.on_interval(Interval(steps=25, loss=1.0, accuracy=None, usage=1.0))
        targets.append(schedule.target)
    assert targets == pytest.approx([0.1, 0.01, 0.01, 0.01])


def test_below_the_budget_open_gates_are_paid_for() -> None:
    schedule = Budget(BudgetConfig(usage=0.5, steps=1000, warmup=0.0, ramp=0.0))
    for _ in range(5):
        schedule.on_interval(Interval(steps=10, loss=1.0, accuracy=None, usage=0.1))
    assert schedule.cost < 0.0


def test_a_restored_state_goes_on_the_same() -> None:
    config = BudgetConfig(usage=0.2, steps=200)
    whole, again = build_schedule(config), build_schedule(config)
    usages = [1.0, 0.8, 0.5, 0.3, 0.25, 0.2]
    for i, usage in enumerate(usages):
        whole.on_interval(Interval(steps=25, loss=1.0, accuracy=None, usage=usage))
        if i == 2:
            again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        elif i > 2:
            again.on_interval(Interval(steps=25, loss=1.0, accuracy=None, usage=usage))
    assert vars(again) == vars(whole)


def test_a_solved_task_ends_the_warm_up_early_and_only_the_warm_up() -> None:
    schedule = Budget(BudgetConfig(usage=0.1, steps=100, warmup=0.4, solve_at=0.9))
    look = Interval(steps=10, loss=1.0, accuracy=0.5, usage=1.0)
    schedule.on_interval(look)
    assert schedule.on_eval(0.89, 1.0) == [] and schedule.steps == 10
    assert "solved at 0.9100 after 10 steps" in schedule.on_eval(0.91, 1.0)[0]
    assert schedule.steps == 40 and schedule.cost == 0.0
    schedule.on_interval(look)
    assert schedule.cost > 0.0
    # Solved again later: nothing is left out.
    assert schedule.on_eval(1.0, 1.0) == [] and schedule.steps == 50
