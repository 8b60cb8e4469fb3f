"""Judgements of the claims about selectors of keys, from records with known answers."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.claims.patterns import SELECTORS
from turnout.claims.registry import get_claim
from turnout.claims.selectors import LONG, RECALL, SHORT, text_arms
from turnout.models.block import build_pattern
from turnout.routers.pattern import PATTERNS

NOISE = (0.0, 0.001, -0.001)


def runs(loss: float, **more: Any) -> list[dict[str, Any]]:
    evidence = [{"value": n, "n": 5, "accuracy": 0.5, "loss": loss} for n in (0, 16, 256)]
    return [
        {"seed": s, "loss": loss + noise, "ms_per_step_dense": 1.0, "config": {"task": {"length": 1024}},
         "slices": {"evidence": evidence}, **more}
        for s, noise in enumerate(NOISE)
    ]  # fmt: skip


@pytest.mark.parametrize(("loss", "verdict"), [(1.9, "holds"), (2.0, "does not hold"), (2.1, "does not hold")])
def test_a_selector_is_better_only_beyond_the_interval(loss: float, verdict: str) -> None:
    seen = {"window": runs(2.0), "n-gram index": runs(loss), "random blocks": runs(2.2), "dense": runs(1.8)}
    rows = {row.statement.partition(" (")[0]: row for row in get_claim("SEL2").judge(seen)}
    assert rows["n-gram index"].verdict == verdict and rows["random blocks"].verdict == "does not hold"
    assert f"minus dense {loss - 1.8:+.4f}" in rows["n-gram index"].control and rows["n-gram index"].n == 3
    assert "dense" not in rows and "window" not in rows


def recalled(far: float) -> dict[str, dict[str, list[float]]]:
    row = {"mass": [0.5, 0.5], "best": [0.9, 0.9], "best_far": [0.8, 0.8], "keys": [50.0, 50.0]}
    return {spec: row | {"far": [far if "last" in spec else 0.1] * 2} for spec in LONG.values()}


@pytest.mark.parametrize(("far", "verdict"), [(0.3, "holds"), (0.1, "does not hold")])
def test_recall_is_judged_beside_the_lot(far: float, verdict: str) -> None:
    seen = {"dense": [r | {"recall": recalled(far + r["loss"] - 2.0)} for r in runs(2.0)]}
    rows = get_claim("SEL1").judge(seen)
    mine = next(row for row in rows if row.statement.startswith("n-gram index:"))
    assert mine.verdict == verdict and "50.0 keys a row" in mine.detail and "80.0 ± 0.0 %" in mine.control
    assert len(rows) == len(LONG) - 4


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.995, "holds"), (0.5, "does not hold")])
def test_recall_of_keys_is_judged_at_the_best_rate_of_each(accuracy: float, verdict: str) -> None:
    def at(value: float) -> list[dict[str, Any]]:
        return [{"seed": s, "accuracy": value, "n_eval": 10_000} for s in range(3)]

    seen = {"dense, lr=0.003": at(0.999), "buckets, lr=0.003": at(0.1), "buckets, lr=0.01": at(accuracy)}
    (row,) = get_claim("SEL3").judge(seen)
    assert row.verdict == verdict and "lr 0.003 10.0/10.0/10.0" in row.detail and "dense 99.9 %" in row.control


def test_a_selector_pays_where_it_is_faster_at_the_longest_length() -> None:
    def row(arm: str, n: int, ratio: float) -> dict[str, Any]:
        return {"arm": f"pattern:{arm}", "ms": 1.0, "ratio": {"flash": ratio + 1, "cudnn": ratio},
                "case": {"n": n, "step": "forward", "heads": 2, "dim": 8, "dtype": "float32"}}  # fmt: skip

    rows = [row("buckets:size=4", 4096, 0.5), row("buckets:size=4", 65536, 3.0), row("top_blocks:keep=2", 65536, 0.9)]
    found = {r.statement.partition(":")[0]: r for r in get_claim("SEL4").judge({"bench": [{"rows": rows}]})}
    assert found["buckets"].verdict == "holds" and found["top_blocks"].verdict == "does not hold"
    assert not get_claim("TH8").judge({"bench": [{"rows": rows}]})


def test_all_arms_read_about_as_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {arm.name: arm.config(0) for arm in text_arms()}
    assert len(arms) == len(LONG) + len(SHORT)
    for config in arms.values():
        pattern = build_pattern(config.model, 0)
        if pattern is not None:
            budget = 57 if config.task.length == 1024 else 14
            assert 0.94 * budget <= pattern.mean_keys(config.task.length) <= budget, config.model.pattern


def test_every_selector_that_is_measured_is_a_pattern() -> None:
    assert set(SELECTORS) <= set(PATTERNS.names())
    named = {spec.partition(":")[0] for specs in (LONG, SHORT, RECALL) for spec in specs.values()}
    assert set(SELECTORS) <= named
