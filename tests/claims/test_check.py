"""`--check` agrees with what holds, objects to what does not, and says what it did not look at."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from turnout.claims import registry
from turnout.claims.check import check, compared, measures, quickest
from turnout.claims.registry import Arm, Claim, Finding
from turnout.claims.reproduce import judge, reproduce
from turnout.cli import main
from turnout.stats import predicted
from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig


def tiny(seed: int) -> RunConfig:
    from turnout.models.config import ModelConfig
    from turnout.tasks.recall import RecallConfig

    return RunConfig(
        name="tiny", seed=seed, task=RecallConfig(length=16, vocab=256), model=ModelConfig(layers=1, width=16, heads=2),
        schedule=JointConfig(steps=4), optim=OptimConfig(batch=4),
        loop=LoopConfig(log_every=2, eval_every=4, eval_sequences=256, final_sequences=256, savings=False),
    )  # fmt: skip


def finding(seen: dict[str, list[dict[str, Any]]]) -> list[Finding]:
    records = seen.get("arm", [])
    mean = sum(r["accuracy"] for r in records) / max(1, len(records))
    told = {"statement": "s", "quoted": "q", "measured": f"{mean:.4f}", "interval": "", "control": ""}
    return [Finding(**told, n=len(records), verdict="holds")]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Claim:
    """A claim with two seeds measured into `tmp_path`, in this process."""
    entry = Claim(id="T1", source="test", title="t", judge=finding, seeds=2, least_seeds=2,
                  arms=lambda: [Arm(name="arm", config=tiny)])  # fmt: skip
    monkeypatch.setitem(registry.CLAIMS, "T1", entry)
    module = importlib.import_module("turnout.claims.reproduce")

    def here(work: list[Any], jobs: int, report: Any) -> list[str]:
        for index, item in enumerate(work):
            module._run_one(item, index)
        return []

    monkeypatch.setattr(module, "run_all", here)
    monkeypatch.setattr("turnout.claims.check.run_all", here)
    reproduce(["T1"], device="cpu", out=tmp_path, report=lambda line: None)
    return entry


def outcomes(entry: Claim, root: Path, **options: Any) -> dict[str, str]:
    settings: dict[str, Any] = {"device": "cpu", "kind": "cpu", "jobs": 1, "minutes": 10, "report": lambda line: None}
    return {line.what: line.outcome for line in check([entry], root, **(settings | options))}


def test_what_was_measured_agrees_with_itself_measured_again(measured: Claim, tmp_path: Path) -> None:
    found = outcomes(measured, tmp_path)
    assert found == {"rows": "same", "accuracy": "inside", "usage": "inside", "loss": "inside"}


def test_a_changed_record_or_row_is_an_objection_and_an_exit_code(
    measured: Claim, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "T1", "--check", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    for seed in range(2):
        path = tmp_path / "runs" / "T1" / f"arm-{seed}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 0.001 * (seed + 1)}))
    assert outcomes(measured, tmp_path)["loss"] == "outside"
    assert main(words) == 1
    rows = json.loads((tmp_path / "claims" / "T1.json").read_text())
    (tmp_path / "claims" / "T1.json").write_text(json.dumps([rows[0] | {"measured": "better"}]))
    assert outcomes(measured, tmp_path)["rows"] == "changed"
    assert "disagree" in capsys.readouterr().out


def test_what_is_too_long_or_of_another_device_is_skipped_with_its_reason(measured: Claim, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "T1" / "arm-0.json"
    record = json.loads(path.read_text())
    for seed in range(2):
        (path.parent / f"arm-{seed}.json").write_text(json.dumps(record | {"train_s": 7200.0, "seed": seed}))
    assert quickest(measured, tmp_path, "cpu", 600)[1] == "its quickest run took 120 min; allow it with --minutes 120"
    assert "kind of device (cuda)" in quickest(measured, tmp_path, "cuda", 1e9)[1]
    assert quickest(measured, tmp_path, "cpu", 1e9)[0] is not None


def test_a_run_that_fails_is_an_objection(measured: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.claims.check.run_all", lambda *_: ["T1 arm seed 0: boom"])
    assert outcomes(measured, tmp_path)["run"] == "failed"


def test_every_learning_rate_of_a_stacked_run_is_a_measure() -> None:
    record = {"n_eval": 100, "runs": [{"lr": 0.1, "precision": 0.5}, {"lr": 0.2, "precision": 0.75}]}
    assert measures(record) == {"precision at lr 0.1": 0.5, "precision at lr 0.2": 0.75}
    (low, high) = compared("T", "a", [record, record], record | {"runs": [{"lr": 0.1, "precision": 0.1},
                                                                          {"lr": 0.2, "precision": 0.75}]})  # fmt: skip
    assert (low.outcome, high.outcome) == ("outside", "inside")


def test_one_seed_gives_no_interval_for_a_loss() -> None:
    (line,) = compared("T", "a", [{"loss": 1.0}], {"loss": 1.0})
    assert line.outcome == "skipped" and "no interval" in line.why


def test_nineteen_of_twenty_further_values_fall_into_the_interval() -> None:
    draw = random.Random(0)
    hits = trials = 0
    for _ in range(4000):
        low, high = predicted([draw.gauss(3.0, 2.0) for _ in range(4)])
        hits += low <= draw.gauss(3.0, 2.0) <= high
        trials += 1
    # Three standard errors of a share of 0.95 in 4,000 draws.
    assert abs(hits / trials - 0.95) < 3 * (0.95 * 0.05 / trials) ** 0.5


def test_judging_writes_nothing_where_nothing_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Claim(id="T2", source="test", title="t", judge=finding, arms=lambda: [Arm(name="arm", config=tiny)])
    assert judge(entry, tmp_path) == [] and not (tmp_path / "claims").exists()
