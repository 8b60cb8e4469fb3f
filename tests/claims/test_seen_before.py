from __future__ import annotations

from typing import Any

import pytest

from turnout.claims.registry import Finding, load_claims
from turnout.recipes import seen_before as recipes
from turnout.routers.query import QUERY_ROUTERS, RouterContext

ARMS = {arm.name: arm for arm in load_claims()["BL1"].arms()}


def records(accuracy: float, usage: float, *, loss: float = 1.0, chance: float | None = 0.01) -> list[dict[str, Any]]:
    shared = {"n_eval": 8192, "chance": chance, "usage_layers": [usage, usage], "gates_per_seq": 128 * usage}
    return [shared | {"seed": s, "accuracy": accuracy, "usage": usage, "loss": loss + s / 100} for s in range(3)]


def judge(seen: dict[str, list[dict[str, Any]]]) -> list[Finding]:
    return load_claims()["BL1"].judge(seen)


def test_an_index_is_judged_beside_what_is_learned_at_its_usage_and_nothing_else() -> None:
    seen = {"tokens, small": records(0.99, 0.075), "linear as tokens, small": records(0.2, 0.07)}
    seen |= {"ema at a quarter, small": records(1.0, 0.27), "random as tokens, small": records(0.1, 0.075)}
    row = judge(seen)[0]
    assert row.verdict == "holds" and row.n == 3 and "tokens 99.0 (98.9-99.1) % at 7.5 %" in row.measured
    assert [part.partition(" as ")[0] for part in row.control.split("; ")] == ["linear", "random"]
    assert "ema at a quarter 100.0 (100.0-100.0) % at 27 %" in row.detail
    assert "within a tenth" not in row.detail
    seen["ema as tokens, small"] = records(1.0, 0.05)
    assert "not within a tenth of the index's usage: ema as tokens 0.67 x; " in judge(seen)[0].detail
    assert judge({**seen, "tokens, small": records(0.98, 0.075)})[0].verdict == "does not hold"


def test_on_text_the_loss_decides_seed_by_seed() -> None:
    def row(loss: float) -> Finding:
        seen = {"rare, text": records(0.6, 0.12, loss=loss, chance=None)}
        seen["ema as rare, text"] = records(0.6, 0.12, chance=None)
        return judge(seen)[0]

    assert row(0.99).verdict == "holds" and row(1.01).verdict == "does not hold"
    assert "nats/byte at 12 %" in row(1.0).measured


def test_the_hypothesis_asks_that_the_index_is_beaten_where_it_does_not_tell_and_not_where_it_does() -> None:
    def verdict(learned: float, usage: float, opened: float) -> str:
        seen = {"tokens, small": records(0.99, opened), "linear as tokens, small": records(0.2, opened)}
        return judge(seen | {"ema at a quarter, small": records(learned, usage)})[-1].verdict

    # 4 of 64 positions ask: at 7 % of the slots most of what opens asks, at 60 % hardly any.
    assert verdict(1.0, 0.27, 0.07) == "holds"
    assert verdict(1.0, 0.03, 0.07) == "does not hold"
    assert verdict(1.0, 0.27, 0.6) == "holds"
    assert verdict(0.5, 0.27, 0.6) == "does not hold"


@pytest.mark.parametrize(
    ("name", "accuracy", "verdict"), [("bigrams", 0.98, "holds"), ("bigrams", 0.01, "does not hold")]
)
def test_an_index_of_bigrams_is_judged_beside_one_of_tokens(name: str, accuracy: float, verdict: str) -> None:
    (row,) = judge({"tokens, small": records(0.985, 0.075), f"{name}, small": records(accuracy, 0.01)})
    assert "bigrams" in row.statement and row.verdict == verdict


def test_rare_tokens_must_find_as_much_and_open_less() -> None:
    def verdict(accuracy: float, usage: float) -> str:
        (row,) = judge({"tokens, recall": records(1.0, 0.65), "rare, recall": records(accuracy, usage)})
        return row.verdict

    assert verdict(1.0, 0.47) == "holds"
    assert verdict(0.9, 0.47) == verdict(1.0, 0.6) == "does not hold"


@pytest.mark.parametrize("name", [name for name in ARMS if not ARMS[name].owner])
def test_every_arm_builds_a_router_at_the_usage_of_its_index(name: str) -> None:
    way, _, task = name.rpartition(", ")
    config = ARMS[name].config(2)
    QUERY_ROUTERS.build(config.model.routing.router, context=RouterContext(width=8))
    index = way.partition(" as ")[2]
    if not index:
        return
    usage, router = recipes.USAGE[task][index], config.model.routing.router
    kind, _, option = router.partition(":")
    given = config.schedule.usage
    if kind in ("random", "periodic"):
        given = float(option.partition("=")[2].partition(",")[0])
        given = given if kind == "random" else 1 / given
    assert given == pytest.approx(usage, rel=1e-5)


def test_a_quick_reproduction_trains_six_small_arms() -> None:
    quick = [arm for arm in ARMS.values() if arm.when == "always"]
    assert len(quick) == 6 and all(arm.name.endswith(", small") for arm in quick)
    configs = [arm.config(0) for arm in quick]
    assert all(c.task.vocab == 2048 and c.optim.batch == 32 and c.schedule.steps <= 1000 for c in configs)


def test_an_arm_with_fewer_seeds_than_the_rest_is_not_shown() -> None:
    seen = {"tokens, small": records(0.99, 0.075), "linear as tokens, small": records(0.2, 0.07)}
    alone = {**seen, "ema as tokens, small": records(1.0, 0.075)[:1]}
    assert judge(alone) == judge(seen)
    # Of a quick reproduction everything has one.
    (row, *_) = judge({name: runs[:1] for name, runs in alone.items()})
    assert row.n == 1 and row.verdict == "does not hold" and "ema as tokens" in row.control


def test_at_256_tokens_an_index_is_judged_beside_attention() -> None:
    def verdict(attention: float) -> str:
        found = judge({"bloom, T=256": records(0.9, 0.075), "attention, T=256": records(attention, 1.0)})
        return found[0].verdict

    assert verdict(0.01) == verdict(0.9) == "holds" and verdict(1.0) == "does not hold"
