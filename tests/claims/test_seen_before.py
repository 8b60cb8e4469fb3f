from __future__ import annotations

from typing import Any

from turnout.claims.registry import load_claims


def records(accuracy: float, usage: float) -> list[dict[str, Any]]:
    return [{"accuracy": accuracy, "usage": usage, "n_eval": 8192} for _ in range(3)]


def test_an_index_of_bigrams_is_judged_beside_one_of_tokens() -> None:
    seen = {"bloom, small": records(0.99, 0.075), "bigrams, small": records(0.98, 0.01)}
    (row,) = load_claims()["BL1"].judge(seen)
    assert row.verdict == "holds" and row.n == 3 and "bigrams 98.0 % at 1.0 %" in row.measured
    seen["bigrams, small"] = records(0.01, 0.01)
    assert load_claims()["BL1"].judge(seen)[0].verdict == "does not hold"


def test_controls_of_the_small_size_stand_beside_the_learned_router() -> None:
    seen = {f"{name}, small": records(0.9, 0.4) for name in ("bloom", "learned", "random")}
    (row,) = load_claims()["BL1"].judge(seen)
    assert "learned 90.0 % at 40.0 %; random 90.0 % at 40.0 %" in row.control and "CPU" in row.statement


def test_every_small_arm_builds_and_is_small() -> None:
    configs = {arm.name: arm.config(0) for arm in load_claims()["BL1"].arms() if arm.name.endswith(", small")}
    assert {"bloom, small", "bigrams, small", "learned, small"} <= configs.keys()
    assert all(config.task.length == 64 and config.task.vocab == 2048 for config in configs.values())
    assert configs["bigrams, small"].model.routing.router == "bloom:ngram=2"
