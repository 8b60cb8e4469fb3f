"""ZO1 and ZO2: which learning rate counts, what attention is, and gates that open as often as they are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from turnout.claims.mqar import best, by_length, open_gates, sweeps
from turnout.claims.registry import get_claim
from turnout.models.causal_lm import CausalLM
from turnout.recipes import mqar
from turnout.tasks import MQARConfig

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
    assert len(found) == len(mqar.CELLS) * len(mqar.WIDTHS)
    assert all(set(mixers) == set(mqar.LAYOUTS) for mixers in found.values())
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
    assert judge(runs(attention=[0.99] * 3, routed=[0.99] * 3, convolution=[1.0] * 3))[0].verdict == "does not hold"
    assert judge(runs(routed=[0.99] * 3)) == []


@pytest.mark.parametrize("usage", [(0.0, 0.25), (0.5, 0.03)])
def test_gates_open_as_often_as_they_are_told(usage: tuple[float, float]) -> None:
    task = MQARConfig(length=64, pairs=4, vocab=256).build(0)
    model = CausalLM(mqar.mqar().model, vocab=256, seed=0)
    batch = task.train_batch(32)
    open_gates(model, batch, usage)
    with torch.no_grad():
        routes = model(batch.tokens).routes
    for route, wanted in zip(routes, usage, strict=True):
        assert route is not None
        # 2,048 decisions; tokens that occur more than once share a logit.
        assert abs(float(route.taken.float().mean()) - wanted) < 0.02


def test_a_bill_is_judged_by_every_kind_of_work() -> None:
    rows = [
        {"cell": CELL, "what": what, "arm": arm, "ms": ms, "usage": 0.05, "n": 9}
        for what, pair in (("prefill", (1.0, 2.0)), ("train_step", (3.0, 2.0)))
        for arm, ms in zip(("routed", "dense"), pair, strict=True)
    ] + [
        {"cell": CELL, "what": w, "arm": "static_hybrid", "ms": 1.5, "usage": None, "n": 9}
        for w in ("prefill", "train_step")
    ]
    (row,) = get_claim("ZO2").judge({"bench": [{"rows": rows, "device_name": "x"}]})
    assert row.verdict == "holds with changes" and "prefill 1 / 2, train step 3 / 2" in row.measured
