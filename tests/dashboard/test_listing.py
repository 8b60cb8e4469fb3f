"""The table of runs: states, filters, order, and reading no more than what changed."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.served import eval_line, train_line
from report.fake_run import Fake, write_fake_run
from turnout.dashboard.folder import RunsFolder
from turnout.dashboard.listing import SORTS, Listing, RunLine, selected


def fresh(root: Path) -> dict[str, RunLine]:
    return {line.name: line for line in Listing(RunsFolder(root)).lines()}


def test_states_say_what_became_of_a_run(tmp_path: Path) -> None:
    for name in ("done", "live", "old", "broken", "future", "bare"):
        write_fake_run(tmp_path / name, Fake(name=name))
    for name in ("live", "old", "bare"):
        (tmp_path / name / "summary.json").unlink()
    long_ago = time.time() - 3600
    for file in ("manifest.json", "metrics.jsonl"):
        os.utime(tmp_path / "old" / file, (long_ago, long_ago))
    (tmp_path / "broken" / "manifest.json").write_text("{")
    manifest = json.loads((tmp_path / "future" / "manifest.json").read_text())
    (tmp_path / "future" / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    (tmp_path / "bare" / "manifest.json").unlink()
    seen = fresh(tmp_path)
    assert {name: line.state for name, line in seen.items()} == {
        "done": "finished", "live": "running", "old": "stopped", "broken": "damaged", "future": "newer",
        "bare": "damaged",
    }  # fmt: skip
    assert "format 99" in seen["future"].problem and "not JSON" in seen["broken"].problem
    assert "manifest.json is missing" in seen["bare"].problem


def test_a_running_run_shows_its_last_lines(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "live")
    (tmp_path / "live" / "summary.json").unlink()
    (tmp_path / "live" / "metrics.jsonl").write_text(
        train_line(10) + eval_line(10, accuracy=0.5) + train_line(20, **{"lambda": 0.25}) + '{"kind": "tr'
    )
    line = fresh(tmp_path)["live"]
    assert (line.step, line.accuracy, line.cost, line.tokens_per_s) == (20, 0.5, 0.25, 1e5)


def test_a_second_look_opens_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 40
    write_fake_run(tmp_path / "run-0")
    for i in range(1, runs):
        shutil.copytree(tmp_path / "run-0", tmp_path / f"run-{i}")
    listing = Listing(RunsFolder(tmp_path))
    opened: list[str] = []
    real = RunsFolder.open

    def counted(self: RunsFolder, name: str, file: str):  # type: ignore[no-untyped-def]
        opened.append(f"{name}/{file}")
        return real(self, name, file)

    monkeypatch.setattr(RunsFolder, "open", counted)
    assert len(listing.lines()) == runs
    assert len(opened) <= 3 * runs
    opened.clear()
    listing._looked = 0.0
    with (tmp_path / "run-7" / "metrics.jsonl").open("a") as stream:
        stream.write(train_line(9999))
    listing.lines()
    assert {path.split("/")[0] for path in opened} == {"run-7"}


def line(name: str, **changed: object) -> RunLine:
    from turnout.report.run import Run

    values: dict[str, object] = {
        "state": "finished", "problem": "", "task": "recall", "arm": "linear", "router": "linear", "schedule": "budget",
        "seed": "0", "step": 1.0, "accuracy": 0.5, "loss": 1.0, "usage": 0.1, "gates": 2.0, "cost": 0.0,
        "tokens_per_s": 3.0, "device": "cpu", "created": "", "modified": 0.0, "run": Run(path=Path(name)),
    }  # fmt: skip
    return RunLine(name=name, **(values | changed))  # type: ignore[arg-type]


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-10, 10)), max_size=8), st.booleans())
def test_sorting_orders_numbers_and_puts_missing_ones_last(values: list[float], down: bool) -> None:
    lines = [line(f"run-{i}", loss=value) for i, value in enumerate(values)]
    found = [item.loss for item in selected(lines, {"sort": "-loss" if down else "loss"})]
    have = [value for value in found if not math.isnan(value)]
    assert have == sorted(have, reverse=down)
    assert all(math.isnan(value) for value in found[len(have) :])


@pytest.mark.parametrize("key", SORTS)
def test_every_column_sorts(key: str) -> None:
    lines = [line("a", state="running", seed="1"), line("b", arm="random", loss=math.nan)]
    assert {item.name for item in selected(lines, {"sort": key})} == {"a", "b"}


def test_filters_combine_and_search_needs_every_word() -> None:
    lines = [line("a"), line("b", task="text"), line("c", arm="random:p=0.1", seed="3"), line("d", state="running")]
    names = lambda **query: [item.name for item in selected(lines, {**query, "sort": "name"})]  # noqa: E731
    assert names(task="text") == ["b"]
    assert names(mechanism="random:p=0.1") == ["c"]
    assert names(state="running") == ["d"]
    assert names(q="RANDOM seed=3") == ["c"]
    assert names(q="random seed=4") == []
    assert names(sort="nonsense") == ["a", "b", "c", "d"]
