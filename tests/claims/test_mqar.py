"""ZO1 and ZO2: which learning rate counts, what attention is, and what a bill says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turnout.claims.mqar import ATTENTION, best, by_length, cpu_bill, sweeps
from turnout.claims.registry import get_claim
from turnout.recipes import mqar
from turnout.tasks import MQARConfig
from turnout.train.loop import Trainer

CELL = "T=64, N=4, d=64"


def runs(**accuracy: list[float]) -> dict[str, list[dict[str, Any]]]:
    """Summaries of one cell at lr 0.003, one record a seed."""
    return {
        f"{mixer.replace('_', ' ')}, {CELL}, lr=0.003": [
            {"accuracy": value, "n_eval": 1000, "usage": 0.05} for value in values
        ]
        for mixer, values in accuracy.items()
    }


def test_arms_are_found_again_by_their_names() -> None:
    names = {arm.name for arm in get_claim("ZO1").arms()}
    found = sweeps({name: [] for name in names})
    assert len(found) == len(mqar.CELLS) * len(mqar.WIDTHS) + len(mqar.LONG)
    assert all(set(mixers) in (set(mqar.LAYOUTS), {"routed", *ATTENTION}) for mixers in found.values())
    assert sorted(found, key=by_length)[:2] == [CELL, "T=128, N=8, d=64"]


def test_the_rate_with_most_seeds_counts_and_among_those_the_best() -> None:
    def records(*values: float) -> list[dict[str, Any]]:
        return [{"accuracy": value} for value in values]

    assert best({1e-3: records(0.2), 3e-3: records(0.9), 1e-2: records(0.5)})[0] == 3e-3
    assert best({1e-3: records(0.99), 3e-3: records(0.8, 0.9, 0.7)})[0] == 3e-3


def test_routed_models_are_compared_with_the_better_attention() -> None:
    judge = get_claim("ZO1").judge
    (row,) = judge(runs(attention=[0.4] * 3, static_hybrid=[0.999] * 3, routed=[0.995] * 3, convolution=[0.1] * 2))
    assert row.verdict == "holds" and row.n == 3 and "99.6 % of static hybrid" in row.measured
    (row,) = judge(runs(attention=[0.999] * 3, routed=[0.98] * 3))
    assert row.verdict == "does not hold"
    # Attention that has not learned the task is no yardstick, and a convolution above it is another order.
    assert judge(runs(attention=[0.4] * 3, routed=[0.4] * 3))[0].verdict == "does not hold"
    assert judge(runs(attention=[0.98] * 3, routed=[0.98] * 3))[0].verdict == "holds with changes"
    assert judge(runs(attention=[0.99] * 3, routed=[0.99] * 3, convolution=[1.0] * 3))[0].verdict == "does not hold"
    assert judge(runs(routed=[0.99] * 3)) == []


def test_a_bill_is_judged_by_every_kind_of_work_and_each_device() -> None:
    def bill(device: str, **pairs: tuple[float, float]) -> dict[str, Any]:
        rows = [
            {"what": what, "arm": arm, "ms": ms, "n": 9, "batch": 2}
            for what, both in pairs.items()
            for arm, ms in zip(("routed", "dense", "static_hybrid"), (*both, 1.5), strict=True)
        ]
        return {"device": device, "rows": rows}

    (name,) = seen = runs(routed=[0.999] * 3)
    for record in seen[name]:
        record["savings_cpu"] = bill("a CPU", prefill=(1.0, 2.0), decode=(1.0, 2.0), train_step=(3.0, 2.0))
    seen[name][0]["savings_cpu"] = bill("another", prefill=(3.0, 2.0), decode=(3.0, 2.0), train_step=(3.0, 2.0))
    other, row = get_claim("ZO2").judge(seen)
    assert other.verdict == "does not hold" and "(another)" in other.statement and other.n == 1
    assert row.verdict == "holds with changes" and "prefill 1 / 2, decode 1 / 2, train step 3 / 2" in row.measured
    assert row.n == 2


def test_a_trained_run_is_billed_on_the_cpu_with_its_own_decisions() -> None:
    config = mqar.mqar(steps=1)
    small = replace(config, device="cpu", loop=replace(config.loop, log_every=1, eval_sequences=2, final_sequences=2))
    trainer = Trainer(replace(small, task=MQARConfig(length=16, pairs=2, vocab=64)))
    trainer.train()
    rows = cpu_bill(trainer, seconds=0.0)["savings_cpu"]["rows"]
    assert {(row["what"], row["arm"]) for row in rows} >= {("prefill", "routed"), ("decode", "dense")}
