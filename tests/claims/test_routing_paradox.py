from __future__ import annotations

from typing import Any

import pytest

from turnout.claims.registry import find_claims, load_claims
from turnout.claims.reproduce import _jobs
from turnout.claims.routing_mechanics import jump_at
from turnout.claims.routing_paradox import best_lr, chance_of, chance_of_published, judge_rows, routing_class
from turnout.errors import ConfigError
from turnout.recipes.routing_paradox import FULL, SMALL, arms_of
from turnout.recipes.routing_rows import ROWS


def record(seed: int, *precisions: float, expand: int = 1) -> dict[str, Any]:
    runs = [
        {"lr": 10.0**-i, "precision": p, "rank": 3.0, "pk": p, "p1": p, "curve": [[1, 0.1], [2, p], [3, p]]}
        for i, p in enumerate(precisions)
    ]
    config = {
        "model": {"k": 4, "expand": expand, "positions": "learned"},
        "task": {"label": "key" if expand else "value", "length": 64},
    }
    return {"seed": seed, "runs": runs, "units": 64, "unit": 1, "n_eval": 2000, "config": config}


def test_the_group_name_stands_for_all_its_claims() -> None:
    found = find_claims(["routing-paradox"])
    assert {entry.id for entry in found} == {f"RP{i}" for i in range(1, 21)} | {"RPC", "RPL"}
    assert [entry.id for entry in find_claims(["RP3", "RP3", "RA1"])] == ["RP3", "RA1"]
    with pytest.raises(ConfigError):
        find_claims(["routing"])


def test_every_row_belongs_to_a_claim_and_every_arm_builds_at_its_scales() -> None:
    assert {row.claim for row in ROWS} <= set(load_claims())
    for claim_id in {row.claim for row in ROWS}:
        for arm, scale in arms_of(claim_id):
            config = arm.config(scale, 3)
            assert config.seed == 3 and config.task.length in (64, 256, 512)


def test_quick_runs_the_small_arms_and_full_the_others(tmp_path: Any) -> None:
    entry = load_claims()["RP6"]
    quick = {job[1].rpartition(", ")[2] for job in _jobs(entry, 1, "cpu", tmp_path, True)}
    full = {job[1].rpartition(", ")[2] for job in _jobs(entry, 3, "cpu", tmp_path, False)}
    assert quick == {SMALL} and full == {FULL}
    assert all(job[2] == (0, 1, 2) for job in _jobs(entry, 3, "cpu", tmp_path, False))


def test_classes_follow_the_exact_chance() -> None:
    assert [routing_class(v, 0.0156) for v in (0.012, 0.02, 0.2, 0.89, 0.9)] == [
        "chance", "chance", "partly", "partly", "routes",
    ]  # fmt: skip
    assert routing_class(0.37, 0.25) == "chance" and routing_class(0.7, 0.6) == "chance"
    assert chance_of_published("1.2 % [1.6]") == 0.016 and chance_of_published("28.7 % [25 or 1.6]") == 0.25
    assert round(chance_of(record(0, 0.5)), 3) == 0.124


def test_the_best_rate_is_that_of_the_mean_over_seeds() -> None:
    records = [record(0, 0.9, 0.5), record(1, 0.1, 0.6)]
    assert best_lr(records) == 0.1 and best_lr(records, worst=True) == 1.0


def test_a_row_holds_with_changes_when_the_reading_of_the_label_decides() -> None:
    seen = {
        f"raw, key, {SMALL}": [record(i, 1.0) for i in range(3)],
        f"raw, value, {SMALL}": [record(i, 0.07, expand=0) for i in range(3)],
    }
    (row,) = judge_rows("RP1", seen)
    assert row.verdict == "holds with changes" and row.n == 3
    assert "raw, key: 100.0 [12.4]" in row.measured and "raw, value: 7.0 [6.3]" in row.measured


def test_the_published_size_replaces_the_small_one() -> None:
    seen = {f"raw, key, {scale}": [record(i, 1.0) for i in range(3)] for scale in (SMALL, FULL)}
    (row,) = judge_rows("RP1", seen)
    assert FULL in row.statement and row.verdict == "does not hold"


def test_answers_without_a_router_are_judged_by_their_accuracy() -> None:
    def answered(accuracy: float) -> list[dict[str, Any]]:
        records = [record(i, 0.008, expand=0) for i in range(3)]
        for entry in records:
            entry["config"]["task"] |= {"vocab": 256, "n_values": 0}
            entry["runs"][0]["accuracy"] = accuracy
        return records

    seen = {f"plain, 4 layers, near, {FULL}": answered(0.99), f"plain, 4 layers, far, {FULL}": answered(0.004)}
    near, far = (row for row in judge_rows("RP12", seen) if "plain" in row.statement)
    assert near.verdict == far.verdict == "holds"
    assert "answers 99.0 [0.4]" in near.measured and "answers 0.4 [0.4]" in far.measured


def test_transitions_are_read_off_the_curves() -> None:
    found = jump_at([record(0, 1.0), record(1, 0.1)], 1.0)
    assert found.seeds[0] is not None and found.seeds[1] is None and found.jumping == 1


def test_what_positions_give_away_counts_as_the_floor() -> None:
    seen = {f"raw, value, {SMALL}": [record(i, 0.13, expand=0) for i in range(3)]}
    (row,) = judge_rows("RP1", seen)
    assert row.verdict == "does not hold"
    seen[f"position only, value, {SMALL}"] = [record(i, 0.125, expand=0) for i in range(3)]
    (row,) = judge_rows("RP1", seen)
    assert row.verdict == "holds" and "position only, value: 12.5" in row.control


def test_near_evidence_is_compared_with_the_positions_of_near_evidence() -> None:
    def near(value: float) -> list[dict[str, Any]]:
        records = [record(i, value, expand=0) for i in range(3)]
        for entry in records:
            entry["config"]["task"] |= {"max_distance": 20}
        return records

    seen = {f"ssm causal, near, value, {SMALL}": near(0.3)}
    (row,) = (row for row in judge_rows("RP2", seen) if "near and far" in row.statement)
    assert row.verdict == "does not hold"
    seen[f"position only, near, value, {SMALL}"] = near(0.28)
    (row,) = (row for row in judge_rows("RP2", seen) if "near and far" in row.statement)
    assert row.verdict == "holds"


def test_arms_are_like_another_where_their_intervals_overlap() -> None:
    def about(value: float) -> list[dict[str, Any]]:
        return [record(i, value + 0.01 * i) for i in range(3)]

    seen = {f"raw, rank-1, key, {SMALL}": about(0.34), f"raw, rank-1 without query, key, {SMALL}": about(0.35)}
    assert [row.verdict for row in judge_rows("RP10", seen) if "without its query" in row.statement] == ["holds"]
    seen[f"raw, rank-1 random sign, key, {SMALL}"] = about(0.22)
    (row,) = (row for row in judge_rows("RP10", seen) if "without its query" in row.statement)
    assert row.verdict == "holds with changes" and row.n == 3
