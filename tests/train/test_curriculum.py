from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.train.config import CurriculumConfig
from turnout.train.curriculum import PATIENCE, Curriculum
from turnout.train.schedule import Interval
from turnout.train.schedules import build_schedule

GOOD, MIDDLING, BAD = 0.999, 0.95, 0.5


def curriculum(**changes: Any) -> Curriculum:
    settings = {"cost": 0.1, "explore_steps": 100, "ramp_steps": 40, "hold_steps": 30, "grow_steps": 50}
    return Curriculum(CurriculumConfig(**{**settings, **changes}))


def seen(accuracy: float | None = GOOD, loss: float = 0.1) -> Interval:
    return Interval(steps=10, loss=loss, accuracy=accuracy, usage=0.5)


def solved(**changes: Any) -> Curriculum:
    """A curriculum that has just left explore."""
    schedule = curriculum(**changes)
    schedule.on_interval(seen(BAD))
    schedule.on_eval(0.999, 0.01)
    assert schedule.phase == "ramp"
    return schedule


def costs(schedule: Curriculum, accuracies: Iterable[float | None], loss: float = 0.1) -> list[float]:
    """Lambda over the cost in each interval; an evaluation with these accuracies comes after each."""
    result = []
    for accuracy in accuracies:
        schedule.on_interval(seen(accuracy))
        result.append(round(schedule.cost / schedule.config.cost, 6))
        schedule.on_eval(accuracy, loss)
    return result


def test_nothing_is_charged_until_an_evaluation_says_solved() -> None:
    schedule = curriculum()
    for _ in range(5):
        assert schedule.on_interval(seen(GOOD)) == [] and schedule.cost == 0.0
    assert schedule.on_eval(0.98, 0.1) == [] and schedule.phase == "explore"
    (event,) = schedule.on_eval(0.9912, 0.1)
    assert event == "explore -> ramp: solved at 0.9912 after 50 steps" and schedule.cost == 0.0


def test_a_run_that_never_solves_its_task_stops_unsolved_and_uncharged() -> None:
    schedule = curriculum(explore_steps=30)
    events = [event for _ in range(3) for event in schedule.on_interval(seen(BAD))]
    assert schedule.done and not schedule.solved and schedule.cost == 0.0
    assert "unsolved after 30 steps" in events[-1]


def test_without_a_goal_explore_lasts_exactly_its_steps() -> None:
    schedule = curriculum(explore_steps=30, solve_at=None)
    phases = []
    for _ in range(4):
        schedule.on_interval(seen(None))
        phases.append(schedule.phase)
    assert phases == ["explore", "explore", "ramp", "ramp"] and schedule.solved


def test_the_phases_follow_each_other_and_each_change_is_an_event() -> None:
    schedule = solved(lengths=(16, 64, 256))
    events: list[str] = []
    lengths = []
    while not schedule.done:
        events += schedule.on_interval(seen(GOOD))
        lengths.append(schedule.length)
    changes = [event.partition(":")[0] for event in events]
    again = "length {} unsolved after 50 steps"
    assert changes == [
        "ramp -> hold",
        "hold -> grow",
        again.format(64),
        "grow -> grow",
        again.format(256),
        "grow -> end",
    ]
    assert [length for length, _ in itertools.groupby(lengths)] == [16, 64, 256]
    assert schedule.cost == pytest.approx(0.1)
    assert len(lengths) * 10 == 40 + 30 + 2 * 2 * 50


def test_a_length_that_is_not_solved_in_time_is_tried_again_from_the_kept_weights_at_a_quarter_of_the_rate() -> None:
    schedule = solved(lengths=(16, 64))
    while schedule.phase != "grow":
        schedule.on_interval(seen(GOOD))
    at_first = schedule.anneal()
    schedule.request = ""
    for _ in range(5):
        assert schedule.request == ""
        schedule.on_interval(seen(BAD))
    assert (schedule.request, schedule.phase, schedule.length) == ("restore", "grow", 64)
    assert schedule.anneal() == at_first / 4
    schedule.on_interval(seen(GOOD))
    assert "solved" in schedule.on_eval(1.0, 0.0)[0] and schedule.request == "keep" and schedule.done


def test_the_ramp_is_straight_while_the_guard_is_content() -> None:
    schedule = solved()
    assert costs(schedule, [GOOD] * 4) == [0.25, 0.5, 0.75, 1.0]
    assert schedule.phase == "hold"


def test_below_the_guard_training_turns_dense_and_the_ramp_goes_back_at_half_its_speed() -> None:
    schedule = solved()
    assert costs(schedule, [GOOD, GOOD, MIDDLING, MIDDLING]) == [0.25, 0.5, 0.75, 0.625]
    assert not schedule.content and schedule.request == ""
    assert costs(schedule, [GOOD, GOOD]) == [0.5, 0.75]
    assert schedule.content and schedule.request == "keep"


def test_a_collapse_goes_back_to_the_kept_weights_and_half_the_ramp_and_on_at_half_the_speed() -> None:
    schedule = solved()
    assert costs(schedule, [GOOD, GOOD]) == [0.25, 0.5] and schedule.request == "keep"
    schedule.on_interval(seen())
    (event,) = schedule.on_eval(BAD, 3.0)
    assert event == "collapse (accuracy 0.5000): back to the kept weights and lambda 0.025"
    assert (schedule.request, schedule.content, schedule.ramp) == ("restore", False, 0.25)
    # One interval passes before an evaluation confirms the restored weights.
    assert costs(schedule, [GOOD, GOOD, GOOD]) == [0.125, 0.25, 0.375]


def test_the_last_length_settles_at_falling_rates_behind_the_guard() -> None:
    schedule = solved(lengths=(16, 64), settle_steps=30)
    while schedule.phase != "grow":
        schedule.on_interval(seen(GOOD))
    schedule.on_interval(seen(GOOD))
    assert schedule.on_eval(1.0, 0.0)[0].startswith("grow -> settle") and schedule.length == 64
    rates = []
    for accuracy in (GOOD, MIDDLING, GOOD, GOOD):
        assert not schedule.done
        rates.append(schedule.anneal())
        schedule.on_interval(seen(accuracy))
        schedule.on_eval(accuracy, 0.0)
    # The interval that the guard objected to does not count.
    assert rates == sorted(rates, reverse=True) and rates[2] == rates[3]
    schedule.on_interval(seen(GOOD))
    assert schedule.done and schedule.phase == "settle"


def test_every_collapse_makes_the_steps_smaller() -> None:
    schedule = solved()
    rates = []
    for accuracy in (GOOD, BAD, GOOD, BAD):
        costs(schedule, [accuracy])
        rates.append(schedule.anneal())
    assert rates == pytest.approx([1.0, 0.7, 0.7, 0.49])


def test_a_second_collapse_from_the_same_weights_halves_the_ramp_again() -> None:
    schedule = solved()
    costs(schedule, [GOOD, GOOD, BAD, BAD])
    assert schedule.ramp == 0.125 and schedule.request == "restore"


def test_collapses_slow_the_ramp_but_never_to_a_standstill() -> None:
    schedule = solved()
    for _ in range(10):
        costs(schedule, [BAD])
    costs(schedule, [GOOD])
    before = schedule.ramp
    costs(schedule, [GOOD])
    assert schedule.ramp - before == pytest.approx(0.25 / 8)


def test_hold_does_not_count_while_the_guard_objects() -> None:
    schedule = solved()
    costs(schedule, [GOOD] * 4)
    assert costs(schedule, [MIDDLING, MIDDLING, GOOD, GOOD]) == [1.0, 0.875, 0.75, 1.0]
    assert not schedule.done
    assert costs(schedule, [GOOD]) == [1.0] and schedule.done
    calm = solved()
    costs(calm, [GOOD] * 6)
    assert not calm.done
    costs(calm, [GOOD])
    assert calm.done


@pytest.mark.parametrize("phase", ["ramp", "hold"])
def test_a_guard_that_never_lets_go_ends_the_phase_all_the_same(phase: str) -> None:
    schedule = solved()
    if phase == "hold":
        costs(schedule, [GOOD] * 4)
    length = {"ramp": 40, "hold": 30}[phase]
    intervals = 0
    while schedule.phase == phase and not schedule.done:
        costs(schedule, [MIDDLING])
        intervals += 1
    assert intervals * 10 == PATIENCE * length


def test_without_a_guard_nothing_stops_the_ramp_and_nothing_is_kept() -> None:
    schedule = solved(guard=0.0, back_off=0.0)
    assert costs(schedule, [BAD] * 4) == [0.25, 0.5, 0.75, 1.0]
    assert schedule.content and schedule.request == ""


def test_a_task_without_accuracy_is_guarded_by_its_loss_against_the_end_of_explore() -> None:
    schedule = curriculum(explore_steps=10, solve_at=None, guard_loss=0.1)
    schedule.on_eval(None, 2.0)
    schedule.on_interval(seen(None))
    assert schedule.phase == "ramp"
    verdicts = []
    for loss in (2.0, 2.19, 2.3, 2.79, 2.9):
        schedule.on_interval(seen(None))
        schedule.on_eval(None, loss)
        verdicts.append((schedule.content, schedule.request))
    assert verdicts == [(True, "keep"), (True, "keep"), (False, ""), (False, ""), (False, "restore")]


def test_stairs_are_equal_and_the_first_is_above_zero() -> None:
    schedule = solved(stairs=4, ramp_steps=80)
    assert costs(schedule, [GOOD] * 8) == [0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0]


def test_a_collapse_ends_the_run_where_the_published_code_ends_it() -> None:
    schedule = solved(stop_below=0.9, guard=0.0, back_off=0.0)
    assert schedule.on_eval(0.91, 0.1) == [] and not schedule.done
    (event,) = schedule.on_eval(0.89, 0.1)
    assert schedule.done and schedule.solved and "0.8900 < 0.9" in event


def test_a_length_that_is_solved_early_ends_its_stage_early() -> None:
    schedule = solved(lengths=(16, 64), grow_at=0.99)
    while schedule.phase != "grow":
        schedule.on_interval(seen(GOOD))
    # The evaluation that comes with the last interval of a stage still graded the length before.
    assert schedule.length == 64 and schedule.on_eval(0.995, 0.1) == [] and not schedule.done
    schedule.on_interval(seen(GOOD))
    assert schedule.on_eval(0.98, 0.1) == [] and not schedule.done
    (event,) = schedule.on_eval(0.995, 0.1)
    assert schedule.done and event == "grow -> end: length 64 solved at 0.9950 after 10 steps"


def test_a_new_length_starts_badly_and_that_is_no_collapse() -> None:
    schedule = solved(lengths=(16, 64))
    while schedule.phase != "grow":
        costs(schedule, [GOOD])
    schedule.on_interval(seen())
    assert schedule.on_eval(BAD, 3.0) == [] and schedule.request == "" and not schedule.content


@given(
    accuracies=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    stairs=st.sampled_from([0, 1, 7]),
    cut=st.integers(0, 60),
)
def test_lambda_stays_in_range_and_a_restored_state_goes_on_the_same(
    accuracies: list[float], stairs: int, cut: int
) -> None:
    config = CurriculumConfig(cost=0.3, explore_steps=50, ramp_steps=70, hold_steps=40, stairs=stairs, lengths=(8, 16))
    schedule = build_schedule(config)
    for i, accuracy in enumerate(accuracies):
        if i == cut:
            again = build_schedule(config)
            again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
            assert vars(again) == vars(schedule)
            schedule = again
        schedule.on_interval(seen(accuracy))
        schedule.on_eval(accuracy, 0.1)
        assert 0.0 <= schedule.cost <= 0.3 + 1e-12
        if schedule.phase == "explore":
            assert schedule.cost == 0.0
