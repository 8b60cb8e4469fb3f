"""`turnout sweep`: combinations, going on after an interruption, failures in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turnout.cli import main
from turnout.errors import ConfigError
from turnout.train.sweep import Point, points, run_sweep, varying

TINY = [
    "--model.layers", "1", "--model.width", "16", "--model.heads", "2", "--task.length", "16", "--optim.batch", "2",
    "--schedule.kind", "joint", "--loop.eval_sequences", "2", "--loop.final_sequences", "2", "--loop.savings", "false",
    "--device", "cpu", "--threads", "1",
]  # fmt: skip


def test_points_are_all_combinations_in_order() -> None:
    found = points({"a": "1|2", "b": "x"}, range(2))
    assert [dict(point.settings) for point in found] == [
        {"a": a, "b": "x", "seed": seed} for a in "12" for seed in "01"
    ]
    assert [point.name for point in found] == ["1", "2", "3", "4"]
    assert varying(found) == ["a", "seed"]
    with pytest.raises(ConfigError, match="different values"):
        points({"a": "1|1"}, ())
    with pytest.raises(ConfigError, match="both given"):
        points({"seed": "1"}, range(2))


def test_a_sweep_runs_two_at_a_time_reports_a_failure_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "recall", "--runs", str(tmp_path), "--name", "s", "--jobs", "2", *TINY, "--schedule.steps", "2|3"]
    (tmp_path / "s/1").mkdir(parents=True)
    (tmp_path / "s/1/stranger").touch()
    assert main([*words, "--json"]) == 1
    first = json.loads(capsys.readouterr().out)
    assert "already exists and is not a run" in first[0]["error"] and first[0]["summary"] is None
    assert first[1]["summary"]["steps"] == 3
    (tmp_path / "s/1/stranger").unlink()
    (tmp_path / "s/1").rmdir()
    before = (tmp_path / "s/2/summary.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "schedule.steps" in capsys.readouterr().out
    assert (tmp_path / "s/2/summary.json").stat().st_mtime_ns == before
    lines = (tmp_path / "s/sweep.csv").read_text().splitlines()
    assert lines[0].startswith("name,schedule.steps,accuracy,loss") and [line[:4] for line in lines[1:]] == [
        "1,2,",
        "2,3,",
    ]


def test_a_backend_that_is_not_installed_and_impossible_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "recall", "--runs", str(tmp_path), "--model.layers", "2|0"]) == 2
    assert "model.layers=0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for backend, package in (("slurm", "submitit"), ("ray", "ray")):
        try:
            __import__(package)
        except ImportError:
            with pytest.raises(NotImplementedError, match=package):
                run_sweep("recall", [Point("1", {})], tmp_path, backend=backend)
