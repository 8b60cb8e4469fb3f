"""What a reproduction is said to cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turnout.claims.plan import Job, dearest_first, duration, makespan, plan_work


def record(root: Path, arm: str, seed: int, **values: Any) -> None:
    folder = root / "runs" / "RA1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{arm}-{seed}.json").write_text(json.dumps({"arm_name": arm, "seed": seed, **values}))


def job(arm: str, *seeds: int, claim: str = "RA1") -> Job:
    return claim, arm, seeds, "cpu", Path("x")


def test_a_run_is_expected_to_take_what_its_arm_took_on_this_kind_of_device(tmp_path: Path) -> None:
    for seed, seconds in enumerate((10.0, 30.0, 20.0)):
        record(tmp_path, "a", seed, train_s=seconds, device="cpu", device_name="EPYC")
    record(tmp_path, "a", 3, train_s=1.0, device="cuda", device_name="H200")
    plan = plan_work([job("a", 5)], 1, "cpu", tmp_path)
    assert plan.runs[0].seconds == 20.0 and plan.runs[0].basis == "this arm on EPYC"
    assert plan_work([job("a", 5)], 1, "cuda", tmp_path).runs[0].seconds == 1.0


def test_without_its_own_the_time_of_another_device_or_arm_is_taken_and_said(tmp_path: Path) -> None:
    record(tmp_path, "a", 0, train_s=4.0, device="cuda", device_name="H200")
    assert "on another kind of device" in plan_work([job("a", 1)], 1, "cpu", tmp_path).runs[0].basis
    assert plan_work([job("b", 1)], 1, "cuda", tmp_path).runs[0].basis == "other arms of this claim on H200"


def test_one_seed_of_a_stack_takes_its_share_on_a_cpu_and_all_of_it_on_a_gpu(tmp_path: Path) -> None:
    for kind, seconds in (("cpu", 18.0), ("cuda", 6.0)):
        # Three seeds at two rates that trained as one stacked model.
        stack = {"runs_together": 6, "config": {"lrs": [1e-3, 3e-3]}, "train_s": seconds, "device": kind}
        record(tmp_path, kind, 0, **stack)
        record(tmp_path, kind, 1, **stack)
    plan = plan_work([job("cpu", 0), job("cpu", 0, 1, 2)], 1, "cpu", tmp_path)
    assert [run.seconds for run in plan.runs] == [6.0, 18.0]
    assert plan_work([job("cuda", 0)], 1, "cuda", tmp_path).runs[0].seconds == 6.0


def test_what_was_never_measured_is_counted_and_not_guessed(tmp_path: Path) -> None:
    record(tmp_path, "a", 0, train_s=3600.0, device="cpu", device_name="EPYC")
    plan = plan_work([job("a", 1), job("x", 0, claim="RA2")], 1, "cpu", tmp_path)
    assert math.isnan(plan.runs[1].seconds) and plan.unknown == 1
    assert (
        plan.words
        == "2 runs to do, 1 at a time: about 60 min, 1.00 core-hours of compute, and 1 whose time is not known"
    )
    assert "nothing to run" in plan_work([], 1, "cpu", tmp_path).words


def test_benchmarks_come_first_and_then_what_takes_longest(tmp_path: Path) -> None:
    for arm, seconds in (("short", 1.0), ("long", 9.0), ("usual", 4.0)):
        record(tmp_path, arm, 0, train_s=seconds, device="cpu", device_name="EPYC")
    new = job("new", 0, claim="RA2")
    work = [job("short", 1), job("long", 1), new, job("usual", 1), job("bench", 0, claim="RPC")]
    assert [arm for _, arm, *_ in dearest_first(work, "cpu", tmp_path)] == ["bench", "long", "new", "usual", "short"]


@given(st.lists(st.integers(1, 100).map(float), min_size=1, max_size=12), st.integers(1, 6))
def test_the_end_lies_between_perfect_sharing_and_one_after_the_other(seconds: list[float], workers: int) -> None:
    end = makespan(seconds, workers)
    assert max(max(seconds), sum(seconds) / workers) <= end <= sum(seconds)
    # Graham's bound for taking the next job when free.
    assert end <= sum(seconds) / workers + max(seconds) * (1 - 1 / workers) + 1e-9 * sum(seconds)
    assert makespan(seconds, 1) == sum(seconds)


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (5, 89, 600, 7200)] == ["5 s", "89 s", "10 min", "2.0 h"]
