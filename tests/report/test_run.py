"""Reading run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from report.fake_run import Fake, write_fake_run
from turnout.report.headline import chance_level
from turnout.report.run import flatten, load_run, lookup, measured, number


def test_a_step_that_was_written_again_after_a_resume_counts_once_and_last(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": step, "loss": loss} for step, loss in ((10, 3.0), (20, 2.0), (10, 1.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [(line["step"], line["loss"]) for line in load_run(tmp_path).train] == [(10, 1.0), (20, 2.0)]


def test_an_unfinished_run_reports_its_last_evaluation_and_says_so(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=100))
    (folder / "summary.json").unlink()
    run = load_run(folder)
    assert run.final("accuracy") == 1.0 and run.final("n_eval") == 1024 and run.router == "linear"
    assert any("has not finished" in note for note in run.notes)


def test_the_final_evaluation_is_the_marked_one(tmp_path: Path) -> None:
    lines = [{"kind": "eval", "step": 5, "accuracy": 0.5, "final": True}, {"kind": "eval", "step": 9, "accuracy": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load_run(tmp_path).final("accuracy") == 0.5


def test_the_last_snapshot_stands_in_for_a_missing_final_map(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=100))
    (folder / "gates" / "final.json").unlink()
    (folder / "gates" / "step-000010.json").write_text("{")
    run = load_run(folder)
    assert run.gates and run.gates.step == 100
    assert any("step-000010.json is left out" in note for note in run.notes)


@pytest.mark.parametrize(("layout", "arm"), [("A", "dense"), ("L", "local"), ("ALLL", "static_hybrid")])
def test_the_arm_of_an_unfinished_run_follows_from_its_layers(tmp_path: Path, layout: str, arm: str) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(layout=layout, steps=60, length=16))
    assert load_run(folder).arm == arm
    (folder / "summary.json").unlink()
    run = load_run(folder)
    assert run.arm == arm and run.router == "none" and run.gates is None


def test_chance_comes_from_the_summary_and_else_from_the_task(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=60))
    assert chance_level(load_run(folder)) == 0.01
    (folder / "summary.json").unlink()
    assert chance_level(load_run(folder)) == 0.01
    text = write_fake_run(tmp_path / "text", Fake(task="text", steps=60, length=16, final_quality=1.5))
    assert math.isnan(chance_level(load_run(text)))


@pytest.mark.parametrize("value", [None, True, "1", [1], {}, math.nan, math.inf, -math.inf, 1e300])
def test_what_is_no_number_is_nan(value: object) -> None:
    assert math.isnan(measured(value)) and math.isnan(number({"x": value}, "x")) and math.isnan(number(None, "x"))


def test_nested_configs_are_flattened_and_searched() -> None:
    config = {"model": {"layers": 4, "routing": {"router": "linear"}}, "lengths": [1, 2]}
    assert flatten(config) == {"model.layers": 4, "model.routing.router": "linear", "lengths": [1, 2]}
    assert lookup(config, "router") == "linear" and lookup(config, "none") is None
