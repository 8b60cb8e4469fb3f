"""Laws of the grids: every cell that was measured is told, and the verdict follows from the cells."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.claims.registry import find_claims, get_claim
from turnout.claims.reproduce import _jobs
from turnout.claims.routing_cells import Cells
from turnout.claims.routing_plateaus import judge_plateaus
from turnout.recipes import routing_grids as grids
from turnout.recipes.routing_paradox import FULL, SMALL


def records(value: float, *, lrs: tuple[float, ...] = (1e-3,), **run: Any) -> list[dict[str, Any]]:
    """Three seeds that all find `value`."""
    model = {"k": 4, "expand": 1, "positions": "learned"}
    runs = [{"lr": lr, "precision": value, "rank": 2.0, **run} for lr in lrs]
    return [
        {"seed": seed, "runs": runs, "units": 512, "unit": 1, "n_eval": 2000, "config": {"model": model, "task": {}}}
        for seed in range(3)
    ]


def measured(claim_id: str, value: Any) -> dict[str, list[dict[str, Any]]]:
    """All arms of a claim, each with `value(name)`."""
    return {arm.name: records(value(arm.name)) for arm in get_claim(claim_id).arms()}


def direction(name: str) -> float:
    if "position" in name:
        return 0.02
    return 1.0 if ", key" in name or name.startswith("shift") else 0.019


def test_the_group_has_the_grids_and_none_runs_in_the_studys_table_or_a_quick_one(tmp_path: Any) -> None:
    ids = {entry.id for entry in find_claims(["routing-experiments"])}
    assert ids == {"RE1", "RE3", "RE6", "RE7", "RE8", "RE9", "RE10"} == set(grids.GRIDS) | {"RE7"}
    study = {entry.id for entry in find_claims(["routing-paradox"])}
    assert not ids & study
    for claim_id in ids - {"RE7"}:
        assert not [job for job in _jobs(get_claim(claim_id), 1, "cpu", tmp_path, True) if job[0] == claim_id]


def test_cells_that_are_missing_are_a_dash_and_change_no_verdict() -> None:
    cells = Cells({f"a, {FULL}": records(0.5), f"b, {SMALL}": records(0.7)})
    assert cells.words(["a", "b"]) == "50.0/–" and "a" in cells and "b" not in cells and cells.seeds() == 3


def test_directions_hold_when_the_label_alone_decides() -> None:
    seen = measured("RE1", direction)
    (row,) = get_claim("RE1").judge(seen)
    assert row.verdict == "holds" and row.n == 3
    assert "raw 100.0/100.0/100.0" in row.measured and "attention 1.9/1.9/1.9" in row.measured
    seen[f"attention, before, value, {FULL}"] = records(1.0)
    assert get_claim("RE1").judge(seen)[0].verdict == "holds with changes"


def test_rank_one_above_its_ceiling_does_not_hold() -> None:
    def rank(name: str) -> float:
        return 0.4 if name.startswith(("rank 1,", "one vector")) else 1.0

    seen = measured("RE3", rank)
    (row,) = get_claim("RE3").judge(seen)
    assert row.verdict == "holds" and "90 % from rank 2 and 2" in row.measured
    seen[f"rank 1, 16 queries, {FULL}"] = records(0.6)
    assert get_claim("RE3").judge(seen)[0].verdict == "holds with changes"


@pytest.mark.parametrize(("trained", "verdict"), [(0.95, "holds"), (0.5, "does not hold")])
def test_segments_compare_trained_codes_with_random_ones(trained: float, verdict: str) -> None:
    def found(name: str) -> list[dict[str, Any]]:
        value = trained if ", trained" in name else 0.9
        return records(value, tops={str(k): value for k in grids.TOPS})

    seen = {arm.name: found(arm.name) for arm in get_claim("RE6").arms()}
    (row,) = get_claim("RE6").judge(seen)
    assert row.verdict == verdict and f"mean 90/{100 * trained:.0f}/90" in row.measured


def test_scans_are_told_by_distance_and_certified() -> None:
    def cell(name: str) -> list[dict[str, Any]]:
        moved = 0.0 if "causal" in name else 1.5
        return records(direction(name), bands={"0": 0.5, "100": direction(name)}, past_moved=moved)

    seen = {arm.name: cell(arm.name) for arm in get_claim("RE8").arms()}
    grid, certificate = get_claim("RE8").judge(seen)
    assert grid.verdict == certificate.verdict == "holds"
    assert "0+ 50.0 100+ 100.0" in grid.detail and "ssm both 1.5" in certificate.measured
    seen[f"ssm causal, state of 4, after, key, {FULL}"][0]["runs"][0]["past_moved"] = 1e-9
    assert get_claim("RE8").judge(seen)[1].verdict == "holds with changes"


def test_plateaus_compare_levels_all_else_equal() -> None:
    def curve(start: int) -> list[list[float]]:
        return [[step, 1.0 if step > start else 0.0] for step in range(25, 1501, 25)]

    def cell(heads: int, norm: str = "") -> tuple[str, list[dict[str, Any]]]:
        both = records(1.0, lrs=(3e-4, 3e-3))
        for record in both:
            record["runs"] = [
                {"lr": lr, "precision": 1.0, "curve": curve(start * (2 if norm else 1))}
                for lr, start in ((3e-4, 500 + 25 * heads), (3e-3, 50))
            ]
        return f"raw, key, std 0.02, heads {heads}{norm}, {FULL}", both

    seen = dict([cell(1), cell(16), cell(4), cell(4, ", no norm")])
    longest, norm = judge_plateaus(seen)
    assert longest.verdict == "holds" and "shorter" in longest.measured and "longer" in longest.measured
    assert norm.verdict == "does not hold"


def test_frozen_layers_stand_beside_their_twins() -> None:
    def value(name: str) -> float:
        return 1.0 if "twin" in name or "layer 0" in name else 0.5

    seen = measured("RE10", value)
    layers, bridges = get_claim("RE10").judge(seen)
    assert layers.verdict == "holds" and "100.0/50.0/50.0/50.0/50.0" in layers.measured
    assert bridges.verdict == "does not hold" and "MLP 50.0" in bridges.measured
