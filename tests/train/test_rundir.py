from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faults import Killed, disk_full, failing, no_permission
from turnout.errors import ConfigError, DataError
from turnout.train.rundir import FORMAT, RunDir, list_runs

CONFIG = {"task": {"kind": "recall", "lengths": (128, 512)}, "model": {"layers": 2}, "seed": 0}


def new_run(root: Path, name: str | None = "a") -> RunDir:
    return RunDir.create(root, name, config_dict=CONFIG)


def line(step: int, kind: str = "train", **values: object) -> dict[str, object]:
    return {"kind": kind, "step": step, "loss": 1 / (step + 1), **values}


def write_steps(run: RunDir, first: int, last: int) -> None:
    """What a deterministic loop logs: a line a step, an evaluation and gates every third."""
    for step in range(first, last + 1):
        run.log(line(step))
        if step % 3 == 0:
            run.log(line(step, "eval"))
            run.write_gates({"step": step, "mean": [[step / 7]]})


def snapshot(run: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@settings(max_examples=25, deadline=None)
@given(killed_at=st.integers(0, 12), resumed_at=st.integers(0, 12), cut=st.integers(0, 30))
def test_a_resumed_run_leaves_the_same_files_as_an_uninterrupted_one(
    tmp_path_factory, killed_at, resumed_at, cut
) -> None:
    root = tmp_path_factory.mktemp("runs")
    whole = new_run(root / "whole")
    write_steps(whole, 1, 12)
    resumed_at = min(resumed_at, killed_at)
    run = new_run(root / "cut")
    write_steps(run, 1, killed_at)
    with open(run.metrics_path, "ab") as file:
        file.write(json.dumps(line(killed_at + 1)).encode()[:cut])
    run = RunDir.create(root / "cut", "a", config_dict=CONFIG, exist="resume")
    run.rewind(resumed_at)
    write_steps(run, resumed_at + 1, 12)
    assert snapshot(run) == snapshot(whole)


def test_rewinding_to_a_position_also_forgets_later_lines_of_the_same_step(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.position() == 0
    run.log(line(9))
    position = run.position()
    run.log(line(9, "eval", final=True))
    run.rewind(9)
    assert len(run.metrics()) == 2
    run.rewind(9, position)
    assert run.metrics() == [line(9)] and run.position() == position
    run.rewind(9, 0)
    assert run.metrics() == []


def test_metrics_that_lost_lines_since_the_checkpoint_are_reported(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for step in (1, 2):
        run.log(line(step))
    position = run.position()
    run.rewind(1)
    with pytest.raises(DataError, match=rf"metrics\.jsonl .* saved at byte {position}; the file was changed"):
        run.rewind(2, position)
    assert run.metrics() == [line(1)]


def test_each_line_is_in_the_file_when_log_returns(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for step in range(3):
        run.log(line(step))
        assert len(run.metrics_path.read_text().splitlines()) == step + 1
    run.sync()
    assert run.metrics() == [line(step) for step in range(3)]


def test_metrics_are_picked_by_kind(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.metrics() == []
    for record in (line(1), line(1, "eval"), line(2), line(2, "event", event="phase")):
        run.log(record)
    assert [record["step"] for record in run.metrics("train")] == [1, 2]
    assert [record["kind"] for record in run.metrics()] == ["train", "eval", "train", "event"]
    assert run.metrics("nothing") == []


def test_not_finite_values_are_null_and_tensors_numbers(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.log(
        {"kind": "train", "step": 1, "loss": math.nan, "lr": math.inf, "usage_layers": torch.tensor([0.5, math.nan])}
    )
    assert run.metrics()[0] == {"kind": "train", "step": 1, "loss": None, "lr": None, "usage_layers": [0.5, None]}


def test_a_last_line_cut_short_is_ignored_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.log(line(1))
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"kind": "train", "st')
    assert run.metrics() == [line(1)]
    run.log(line(2))
    assert run.metrics() == [line(1), line(2)]


def test_damage_inside_the_metrics_is_reported_with_its_line(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.log(line(1))
    with open(run.metrics_path, "ab") as file:
        file.write(b"garbage\n")
    run.log(line(2))
    for read in (run.metrics, lambda: run.rewind(1)):
        with pytest.raises(DataError, match=r"metrics\.jsonl line 2 is b'garbage"):
            read()


def test_a_kill_while_logging_leaves_whole_lines_only(tmp_path: Path) -> None:
    for at in itertools.count(1):
        run = new_run(tmp_path, f"run-{at}")
        run.log(line(1))
        try:
            with failing(at, Killed) as fault:
                run.log(line(2))
        except Killed:
            pass
        assert run.metrics() in ([line(1)], [line(1), line(2)])
        run.rewind(1)
        run.log(line(2))
        assert run.metrics() == [line(1), line(2)]
        if fault.call is None:
            break


@pytest.mark.parametrize("make_error", [disk_full, no_permission])
def test_a_full_disk_while_logging_is_a_data_error_and_leaves_the_file_as_it_was(tmp_path: Path, make_error) -> None:
    run = new_run(tmp_path)
    run.log(line(1))
    before = run.metrics_path.read_bytes()
    for at in (1, 2):
        with failing(at, make_error), pytest.raises(DataError, match=r"metrics\.jsonl .*what was there before is kept"):
            run.log(line(2))
        assert run.metrics_path.read_bytes() == before
    run.log(line(2))
    assert run.metrics() == [line(1), line(2)]


def test_a_kill_while_a_run_is_created_never_blocks_its_name(tmp_path: Path) -> None:
    for at in itertools.count(1):
        root = tmp_path / str(at)
        try:
            with failing(at, Killed) as fault:
                new_run(root)
        except Killed:
            pass
        if (root / "a" / "manifest.json").exists():
            assert RunDir.open(root / "a").config["seed"] == 0
        else:
            assert new_run(root).name == "a"
        if fault.call is None:
            break


def test_a_full_disk_while_a_run_is_created_says_where(tmp_path: Path) -> None:
    for at in itertools.count(1):
        with failing(at, disk_full) as fault:
            try:
                new_run(tmp_path / str(at))
            except DataError as error:
                assert "disk is full" in str(error) and str(tmp_path / str(at)) in str(error)
        if fault.call is None:
            break


def test_json_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_summary({"accuracy": 0.5})
    for at in itertools.count(1):
        try:
            with failing(at, Killed) as fault:
                run.write_summary({"accuracy": 1.0, "solved": True})
        except Killed:
            pass
        assert run.summary() in ({"accuracy": 0.5}, {"accuracy": 1.0, "solved": True})
        if fault.call is None:
            break
    assert run.read_json("savings.json") is None


def test_a_taken_name_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    new_run(tmp_path).log(line(1))
    before = snapshot(RunDir.open(tmp_path / "a"))
    with pytest.raises(ConfigError, match="already exists; continue it with --resume, or choose another name"):
        new_run(tmp_path)
    assert snapshot(RunDir.open(tmp_path / "a")) == before


def test_a_folder_that_is_not_a_run_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="not a run; choose another name"):
        new_run(tmp_path)
    (tmp_path / "b").write_text("a file")
    with pytest.raises(ConfigError, match="not a run"):
        new_run(tmp_path, "b")
    with pytest.raises(DataError, match=r"not a run folder .* no manifest\.json"):
        RunDir.open(tmp_path / "a")


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert new_run(tmp_path).manifest["name"] == "a"


def test_generated_names_count_up_and_skip_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "recall-0-2").mkdir(parents=True)
    names = [RunDir.create(tmp_path, None, config_dict=CONFIG, stem="recall-0").name for _ in range(3)]
    assert names == ["recall-0-1", "recall-0-3", "recall-0-4"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden", "a b", "a\n"])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a folder name"):
        new_run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_holds_config_name_and_format_before_anything_else_happens(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a", config_dict=CONFIG, manifest={"seed": 3, "commit": "unknown", "config": {}})
    stored = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert stored == run.manifest
    assert (stored["format"], stored["name"], stored["seed"]) == (FORMAT, "a", 3)
    assert run.config == {"task": {"kind": "recall", "lengths": [128, 512]}, "model": {"layers": 2}, "seed": 0}


def test_resume_opens_the_run_and_records_that_it_did(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "a", config_dict=CONFIG, manifest={"commit": "1"})
    for commit in ("2", "3"):
        run = RunDir.create(
            tmp_path, "a", config_dict=CONFIG, exist="resume", manifest={"commit": commit, "config": {}}
        )
    assert run.manifest["commit"] == "1" and run.manifest["resumed"] == [{"commit": "2"}, {"commit": "3"}]
    assert RunDir.open(run.path).manifest == run.manifest


def test_resume_with_another_config_names_what_differs(tmp_path: Path) -> None:
    new_run(tmp_path)
    other = {**CONFIG, "model": {"layers": 4}, "extra": 1}
    with pytest.raises(ConfigError, match=r"extra: \(not set\) -> 1; model\.layers: 2 -> 4\).*another name"):
        RunDir.create(tmp_path, "a", config_dict=other, exist="resume")


def test_resume_of_a_missing_run_names_the_nearest(tmp_path: Path) -> None:
    new_run(tmp_path, "recall-0-1")
    with pytest.raises(ConfigError, match=r"no run 'recal-0-1'.*did you mean 'recall-0-1'.*without --resume"):
        RunDir.create(tmp_path, "recal-0-1", config_dict=CONFIG, exist="resume")
    with pytest.raises(ConfigError, match="needs the name"):
        RunDir.create(tmp_path, None, config_dict=CONFIG, exist="resume")
    with pytest.raises(DataError, match=r"no run folder at .*did you mean 'recall-0-1'"):
        RunDir.open(tmp_path / "recal-0-1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "not a run folder"),
        ("[1]", "not a run folder"),
        ('{"name": "x", "config": {}}', "format None; expected an integer"),
        ('{"format": 1}', "expected an integer format and a table config"),
        (json.dumps({"format": FORMAT + 1, "config": {}}), "newer version .* upgrade"),
        ('{"format": 1, "con', "not JSON"),
    ],
)
def test_foreign_newer_and_damaged_runs_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=words):
        RunDir.open(tmp_path / "a")
    assert os.listdir(tmp_path / "a") == ["manifest.json"]


def test_gate_files_come_in_step_order_and_the_last_is_also_final(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for step in (1_000_000, 20, 3):
        run.write_gates({"step": step}, final=step == 1_000_000)
    names = [path.name for path in run.gate_files()]
    assert names == ["step-000003.json", "step-000020.json", "step-1000000.json"]
    assert run.read_json("gates/final.json") == {"step": 1_000_000}


def test_runs_are_listed_without_foreign_folders(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == []
    for name in ("b", "a"):
        new_run(tmp_path, name)
    (tmp_path / "other").mkdir()
    assert sorted(list_runs(tmp_path)) == ["a", "b"]
