"""Trackers get a copy of every line, and nothing that they do reaches training."""

from __future__ import annotations

import json
import math
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from turnout.errors import ConfigError, UnsupportedError
from turnout.train import tracking
from turnout.train.loop import Interrupted, train
from turnout.train.rundir import RunDir
from turnout.train.tracking import TRACKERS, parse_trackers, scalars, tracked


def tiny(seed: int = 0) -> Any:
    from turnout.models.config import ModelConfig
    from turnout.tasks.recall import RecallConfig
    from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig

    return RunConfig(
        name="tiny", seed=seed, device="cpu", task=RecallConfig(length=16, vocab=256), threads=1,
        model=ModelConfig(layers=1, width=16, heads=2), schedule=JointConfig(steps=6), optim=OptimConfig(batch=4),
        loop=LoopConfig(log_every=2, eval_every=4, eval_sequences=8, final_sequences=8, savings=False),
    )  # fmt: skip


class Recorder:
    """An adapter that remembers, and fails where it is told to."""

    fail_in = ""
    made: list[Recorder]

    def __init__(self, run: RunDir, step: int) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._maybe_fail("init")
        type(self).made.append(self)

    def _maybe_fail(self, where: str) -> None:
        print("chatter of a tracker")
        if where == self.fail_in:
            raise RuntimeError("no network")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._maybe_fail("log")
        self.calls.append(("log", step, dict(numbers)))

    def note(self, step: int, name: str, words: str) -> None:
        self._maybe_fail("note")
        self.calls.append(("note", step, name, words))

    def finish(self, summary: dict[str, float]) -> None:
        self._maybe_fail("finish")
        self.calls.append(("finish", dict(summary)))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("Fresh", (Recorder,), {"made": [], "fail_in": ""})
    monkeypatch.setitem(TRACKERS, "recorder", "json")
    module = types.ModuleType("turnout.train.tracking.recorder")
    module.Adapter = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "turnout.train.tracking.recorder", module)
    return kind


def test_a_tracker_gets_every_line_of_the_metrics_and_the_summary(tmp_path: Path, recorder: type[Recorder]) -> None:
    run, summary = train(tiny(), root=tmp_path, track=("recorder",))
    (seen,) = recorder.made
    *lines, end = seen.calls
    told = run.metrics()
    assert [line[1] for line in lines] == [record["step"] for record in told]
    for line, record in zip(lines, told, strict=True):
        if record["kind"] == "event":
            assert line[2:] == (record["event"], record["detail"])
        else:
            assert line[2] == scalars(record, prefix=f"{record['kind']}/")
            assert line[2][f"{record['kind']}/loss"] == record["loss"]
    assert end == ("finish", scalars(summary))


@pytest.mark.parametrize("where", ["init", "log", "note", "finish"])
def test_a_tracker_that_fails_anywhere_changes_nothing_but_a_warning(
    tmp_path: Path, recorder: type[Recorder], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.fail_in = where
    with pytest.warns(UserWarning, match="tracker recorder failed .RuntimeError: no network."):
        run, summary = train(tiny(), root=tmp_path, name="tracked", track=("recorder",))
    assert capsys.readouterr().out == "", "what a tracker prints does not mix with the output of a command"
    plain, plain_summary = train(tiny(), root=tmp_path, name="plain")
    # Times differ from run to run; what was learned does not.
    kept = ("kind", "step", "loss", "accuracy", "usage", "event", "detail")
    strip = lambda lines: [{key: line.get(key) for key in kept} for line in lines]  # noqa: E731
    assert strip(run.metrics()) == strip(plain.metrics())
    assert summary["loss"] == plain_summary["loss"]


def test_one_failing_tracker_does_not_stop_the_other(tmp_path: Path, recorder: type[Recorder]) -> None:
    class Broken:
        def __init__(self, run: RunDir, step: int) -> None:
            raise OSError("disk full")

    sys.modules["turnout.train.tracking.recorder"].Broken = Broken  # type: ignore[attr-defined]
    run = RunDir.create(tmp_path, "r", config_dict={})
    with pytest.warns(UserWarning, match="disk full"):
        both = tracking.Tracked(None, ("recorder",), run)
        with both._guarded("other"):
            Broken(run, 0)
    both.update({"kind": "train", "step": 3, "loss": 1.0})
    assert recorder.made[0].calls == [("log", 3, {"train/loss": 1.0})]


def test_an_interrupted_run_closes_its_trackers(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from turnout.train import loop

    def stop(self: Any) -> Any:
        raise Interrupted(1, None)

    monkeypatch.setattr(loop.Trainer, "train", stop)
    with pytest.raises(Interrupted):
        train(tiny(), root=tmp_path, track=("recorder",))
    assert recorder.made[0].calls[-1] == ("finish", {})


def test_names_are_checked_before_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord'.*tensorboard"):
        parse_trackers("tensorbord")
    monkeypatch.setitem(TRACKERS, "absent", "no_such_package_here")
    with pytest.raises(UnsupportedError, match=r"pip install 'turnout\[absent\]'"):
        parse_trackers("absent")
    assert parse_trackers("") == ()


def test_numbers_of_a_record_are_flat_and_finite() -> None:
    record = {"kind": "train", "step": 4, "a": 1, "b": None, "c": math.nan, "d": [0.5, None, 2], "e": True, "f": "x"}
    assert scalars(record, prefix="train/") == {"train/a": 1.0, "train/d/0": 0.5, "train/d/2": 2.0, "train/e": 1.0}


def test_without_trackers_the_view_is_the_view(tmp_path: Path) -> None:
    view = object()
    with tracked(view, (), RunDir(tmp_path, {})) as found:  # type: ignore[arg-type]
        assert found is view


def test_tensorboard_holds_the_metrics_and_forgets_what_a_resume_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = train(tiny(), root=tmp_path, track=("tensorboard",))
    with tracked(None, ("tensorboard",), run, step=2) as again:
        assert again is not None
        again.update({"kind": "train", "step": 4, "loss": 0.125})
    seen = EventAccumulator(str(run.path / "tensorboard"))
    seen.Reload()
    losses = {point.step: point.value for point in seen.Scalars("train/loss")}
    first = {record["step"]: record["loss"] for record in run.metrics("train")}
    assert losses[2] == pytest.approx(first[2]) and losses[4] == 0.125 and 6 not in losses
    assert "event/phase/text_summary" in seen.Tags()["tensors"]


def test_wandb_writes_an_offline_run_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run, _ = train(tiny(), root=tmp_path, track=("wandb",))
    (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    # Another process writes the file; it ends a moment after the run.
    until = time.monotonic() + 20
    while b"eval/accuracy" not in (content := file.read_bytes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert b"train/loss" in content and b"eval/accuracy" in content


def test_trackio_keeps_every_line_in_its_local_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    import sqlite3

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run, _ = train(tiny(), root=tmp_path, track=("trackio",))
    (database,) = (tmp_path / "trackio").glob("turnout*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics").fetchall()
    mine = [(step, json.loads(metrics)) for name, step, metrics in rows if name == run.name]
    stored = {(step, key): value for step, numbers in mine for key, value in numbers.items()}
    for record in run.metrics("train"):
        assert stored[record["step"], "train/loss"] == pytest.approx(record["loss"])


def test_the_flag_reaches_the_run_and_a_wrong_one_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.cli import main
    from turnout.train import loop

    seen: dict[str, Any] = {}

    def fake(config: Any, **options: Any) -> Any:
        seen.update(options)
        raise Interrupted(0, None)

    monkeypatch.setattr(loop, "train", fake)
    monkeypatch.setitem(TRACKERS, "recorder", "json")
    assert main(["train", "demo", "--track", "recorder,recorder", "--runs", str(tmp_path)]) == 130
    assert seen["track"] == ("recorder",)
    seen.clear()
    assert main(["train", "demo", "--track", "nobody", "--runs", str(tmp_path)]) == 2
    assert seen == {} and list(tmp_path.iterdir()) == []
