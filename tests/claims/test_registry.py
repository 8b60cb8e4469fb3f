"""Laws of the claims: every entry runs, judges what it is given and never calls one seed a result."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnout.claims import markdown, table
from turnout.claims.registry import VERDICTS, Arm, Claim, Finding, get_claim, load_claims
from turnout.claims.reproduce import judge, reproduce
from turnout.claims.store import from_here, results_dir, summaries
from turnout.claims.table import COLUMNS, HEADLINES, headlines
from turnout.errors import ConfigError, DataError, TurnoutError
from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig

REQUIRED = (
    "id",
    "source",
    "statement",
    "quoted",
    "measured",
    "n",
    "interval",
    "control",
    "verdict",
    "device",
    "commit",
    "command",
)


def summary(arm: str, seed: int, **changes: Any) -> dict[str, Any]:
    base = {
        "arm_name": arm, "seed": seed, "accuracy": 1.0, "usage": 0.002, "gates_per_seq": 1.0,
        "usage_layers": [0.008, 0, 0, 0],
        "correct": 4096, "n_eval": 4096, "loss": 0.1, "device_name": "test", "commit": "abc", "stages": [],
    }  # fmt: skip
    return base | changes


def write(root: Path, claim_id: str, records: list[dict[str, Any]]) -> None:
    folder = root / "runs" / claim_id
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / f"{record['arm_name']}-{record['seed']}.json").write_text(json.dumps(record))


def test_issue_claims_are_registered() -> None:
    assert {"RA1", "RA2", "RA3", "RA4", "RA5", "RA6", "TX1"} <= set(load_claims())


@pytest.mark.parametrize("claim_id", sorted(load_claims()))
def test_every_arm_gives_a_config_with_the_seed_it_was_asked_for(claim_id: str) -> None:
    entry = get_claim(claim_id)
    names = [arm.name for arm in entry.arms()]
    assert len(names) == len(set(names))
    for arm in entry.arms():
        assert [arm.config(seed).seed for seed in (0, 3)] == [0, 3]


def test_unknown_claim_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="RA1"):
        get_claim("RA11")


def test_table_has_a_row_for_every_claim_and_the_promised_keys(tmp_path: Path) -> None:
    rows = table(tmp_path)
    ids = [row["id"] for row in rows]
    assert sorted(ids) == sorted(load_claims()) and ids.index("RA6") < ids.index("RP9") < ids.index("RP10")
    assert all(set(row) == set(COLUMNS) and row["verdict"] == "not measured" for row in rows)


def test_committed_rows_have_the_promised_keys_and_verdicts() -> None:
    rows = table()
    assert all(set(REQUIRED) <= set(row) for row in rows)
    assert {row["verdict"] for row in rows} <= set(VERDICTS)


@pytest.mark.parametrize("claim_id", [i for i in sorted(load_claims()) if summaries(i)])
def test_committed_rows_follow_from_the_committed_runs(claim_id: str, tmp_path: Path) -> None:
    shutil.copytree(results_dir() / "runs", tmp_path / "runs")
    again = judge(get_claim(claim_id), tmp_path)
    shown = [row for row in table() if row["id"] == claim_id]
    # Runs that do not settle anything yet leave the row of a claim that was not measured.
    assert again == shown if again else [row["verdict"] for row in shown] == ["not measured"]


def test_too_few_seeds_are_no_result_however_good(tmp_path: Path) -> None:
    write(tmp_path, "RA1", [summary("our curriculum, published model", seed) for seed in range(2)])
    (row,) = judge(get_claim("RA1"), tmp_path)
    assert row["verdict"] == "too few seeds"


def test_one_bad_seed_of_five_does_not_hold(tmp_path: Path) -> None:
    records = [summary("our curriculum, published model", seed) for seed in range(5)]
    write(tmp_path, "RA1", records)
    assert judge(get_claim("RA1"), tmp_path)[0]["verdict"] == "holds"
    write(tmp_path, "RA1", [records[4] | {"accuracy": 0.98}])
    assert judge(get_claim("RA1"), tmp_path)[0]["verdict"] == "does not hold"


def test_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs" / "RA1").mkdir(parents=True)
    (tmp_path / "runs" / "RA1" / "x-0.json").write_text("{")
    with pytest.raises(DataError, match=re.escape("x-0.json")):
        summaries("RA1", tmp_path)


def test_markdown_has_one_line_a_row(tmp_path: Path) -> None:
    rows = table(tmp_path)
    assert len(markdown(rows).splitlines()) == len(rows) + 2


def tiny_claim() -> Claim:
    def config(seed: int) -> RunConfig:
        return RunConfig(
            seed=seed,
            model=replace(RunConfig().model, layers=1, width=16, heads=2, local="conv:kernel=4"),
            schedule=JointConfig(steps=2),
            optim=OptimConfig(batch=2),
            loop=LoopConfig(log_every=2, eval_every=2, eval_sequences=4, final_sequences=4, savings=False),
        )

    def decide(seen: dict[str, list[dict[str, Any]]]) -> list[Finding]:
        n = len(seen["arm"])
        return [Finding(statement="s", quoted="q", measured="m", n=n, interval="i", control="c", verdict="holds")]

    return Claim(id="T1", source="test", title="t", arms=lambda: [Arm(name="arm", config=config)], judge=decide)


def test_reproduce_writes_runs_and_rows_and_does_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.claims import registry

    claims = importlib_reproduce()
    monkeypatch.setitem(registry.CLAIMS, "T1", tiny_claim())
    lines: list[str] = []

    def serial(work: list[Any], jobs: int, report: Any) -> list[str]:
        for i, job in enumerate(work):
            report(claims._run_one(job, i))
        return []

    monkeypatch.setattr(claims, "run_all", serial)
    rows = reproduce(["T1"], device="cpu", seeds=3, out=tmp_path, report=lines.append)
    assert rows[0]["n"] == 3
    assert rows[0]["verdict"] == "holds"
    assert sum("accuracy" in line for line in lines) == 3
    again: list[str] = []
    assert reproduce(["T1"], device="cpu", seeds=3, out=tmp_path, report=again.append) == rows
    assert again == [], "nothing was run"


def test_looking_at_claims_needs_no_torch() -> None:
    words = "import sys; from turnout.claims import table; table(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0


def _sleep(job: Any, number: int) -> str:
    if job[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job[1] == "slow":
        time.sleep(600)
    if job[1] == "bad":
        raise ValueError("its line")
    return f"its line in {os.getpid()}"


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`turnout.claims.reproduce` with jobs that do not train, in processes that start at once."""
    claims = importlib_reproduce()
    monkeypatch.setattr(claims, "_run_one", _sleep)
    monkeypatch.setattr(claims.multiprocessing, "get_context", lambda _: FORK)
    return claims


FORK = multiprocessing.get_context("fork")


def job(arm: str) -> tuple[str, str, tuple[int, ...], str, Path]:
    return "T1", arm, (0,), "cpu", Path("nowhere")


def test_a_run_that_is_killed_or_fails_takes_no_other_with_it(scheduler: Any) -> None:
    lines: list[str] = []
    failures = scheduler.run_all([job("killed"), job("bad"), job("good")], 3, lines.append)
    assert len(lines) == 3 and sorted(failures) == [
        "T1 bad seed 0: its line",
        "T1 killed seed 0: its process ended without a word (exit code -9); it may have run out of memory",
    ]
    assert any("T1 good seed 0: its line" in line for line in lines)


def test_a_process_goes_from_job_to_job_and_a_new_one_follows_a_failure(scheduler: Any) -> None:
    lines: list[str] = []
    scheduler.run_all([job("good"), job("good"), job("bad"), job("good")], 1, lines.append)
    first, second, _, last = (line.rpartition(" ")[2] for line in lines)
    assert first == second != last


def test_nothing_runs_beside_a_benchmark(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[str] = []
    monkeypatch.setattr(scheduler, "_run_one", _span)
    scheduler.run_all([job("good"), job("bench"), job("good"), job("good")], 3, lambda line: spans.append(line))
    (bench,) = [line for line in spans if "bench" in line]
    began, ended = _began_and_ended(bench)
    others = [_began_and_ended(line) for line in spans if line != bench]
    assert len(others) == 3 and all(end <= began or start >= ended for start, end in others)


def _span(job: Any, number: int) -> str:
    began = time.monotonic()
    time.sleep(0.05)
    return f"{began} {time.monotonic()}"


def _began_and_ended(line: str) -> tuple[float, ...]:
    return tuple(float(word) for word in line.split()[-2:])


def test_an_interruption_stops_what_runs_and_what_waits(scheduler: Any) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        scheduler.run_all([job("slow"), job("good"), job("slow"), job("slow")], 2, stop)
    assert time.monotonic() - began < 300


def importlib_reproduce() -> Any:
    import importlib

    return importlib.import_module("turnout.claims.reproduce")


def test_failed_runs_are_reported_after_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.claims import registry

    monkeypatch.setitem(registry.CLAIMS, "T1", tiny_claim())
    monkeypatch.setattr(importlib_reproduce(), "run_all", lambda work, jobs, report: ["T1 arm seed 0: boom"])
    write(tmp_path, "T1", [summary("arm", 1)])
    with pytest.raises(TurnoutError, match="boom"):
        reproduce(["T1"], device="cpu", seeds=2, out=tmp_path, report=lambda line: None)


def test_readme_shows_the_committed_table() -> None:
    readme = results_dir().parent / "README.md"
    shown = readme.read_text().partition("<!-- claims -->\n")[2].partition("\n<!-- /claims -->")[0]
    assert shown == markdown(headlines(), HEADLINES)


def test_a_record_names_a_text_below_the_working_directory_by_where_it_is_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def shown(path: str) -> str:
        return from_here({"task": {"path": path, "length": 8}})["task"]["path"]

    assert shown(str(tmp_path / "data" / "corpus")) == "data/corpus" == shown("data/corpus")
    assert shown("/elsewhere/corpus") == "/elsewhere/corpus"
    assert from_here({"task": {"length": 8}}) == {"task": {"length": 8}}
