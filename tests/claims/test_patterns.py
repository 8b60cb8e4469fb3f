"""Judgements of the claims about patterns, from records with known answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from turnout.claims import pattern_time
from turnout.claims.data_efficiency import tokens_to
from turnout.claims.discovered import discovered, rival
from turnout.claims.pattern_retrieval import beyond
from turnout.claims.pattern_runs import evidence_distance
from turnout.claims.pattern_search import METHODS
from turnout.claims.patterns import text_arms
from turnout.claims.registry import get_claim

DOMAINS = ("academic", "conversation", "reference")


def record(seed: int, losses: dict[str, float], **more: Any) -> dict[str, Any]:
    slices = {"domain": [{"value": name, "n": 10, "accuracy": 0.5, "loss": loss} for name, loss in losses.items()]}
    loss = sum(losses.values()) / len(losses)
    return {"seed": seed, "loss": loss, "slices": slices, "ms_per_step_dense": 1.0, "steps": 5, **more}


def arm(chat: float, dense_text: float) -> list[dict[str, Any]]:
    noise = (0.0, 0.001, -0.001)
    return [
        record(s, {"academic": dense_text + n, "conversation": chat - n, "reference": dense_text + n})
        for s, n in enumerate(noise)
    ]


@pytest.mark.parametrize(("dense_text", "verdict"), [(1.2, "holds"), (1.05, "does not hold")])
def test_decay_fails_on_dense_text_only_where_it_costs_more_there(dense_text: float, verdict: str) -> None:
    rows = get_claim("TH1").judge({"dense": arm(1.0, 1.0), "fixed decay": arm(1.05, dense_text)})
    assert [row.verdict for row in rows] == [verdict]
    assert "conversation +0.05" in rows[0].measured and rows[0].n == 3


def test_learning_is_better_only_beyond_its_interval() -> None:
    seen = {"fixed decay": arm(1.1, 1.1), "learned constant decay": arm(1.1, 1.1), "forgetting": arm(1.0, 1.0)}
    rows = {row.statement: row.verdict for row in get_claim("TH2").judge(seen)}
    assert rows["learned constant decay has a lower loss than fixed decay"] == "does not hold"
    assert rows["forgetting has a lower loss than fixed decay"] == "holds"


def test_tokens_to_a_loss_are_interpolated_between_evaluations() -> None:
    one = {"config": {"optim": {"batch": 2, "accumulate": 1}, "task": {"length": 10}}, "curve": [[10, 3.0], [20, 1.0]]}
    assert tokens_to(one, 2.0) == pytest.approx(15 * 20)
    assert tokens_to(one, 3.5) == pytest.approx(10 * 20)
    assert tokens_to(one, 0.5) == float("inf")


def run(seed: int, curve: list[list[float]], last: float) -> dict[str, Any]:
    config = {"optim": {"batch": 1, "accumulate": 1}, "task": {"length": 10}}
    return {"seed": seed, "config": config, "curve": curve, "loss": last}


def test_data_efficiency_is_judged_at_the_best_loss_of_dense() -> None:
    slow, fast = [[10, 3.0], [20, 2.0], [30, 2.5]], [[10, 2.0], [20, 1.0]]
    seen = {
        "dense": [run(s, slow, 2.6) for s in range(3)],
        "forgetting": [run(s, fast, 1.5) for s in range(3)],
        "dense, dropout 0.1": [run(s, [[10, 2.9 + 0.01 * s]], 1.9) for s in range(3)],
    }
    rows = get_claim("TH7").judge(seen)
    assert [row.verdict for row in rows] == ["holds", "holds"]
    assert "2.00x as fast" in rows[0].measured and "(2.000 nats/byte)" in rows[0].statement
    assert "+0.1000 nats/byte lower" in rows[1].measured


def test_a_pattern_keeps_an_association_only_if_dense_attention_has_it() -> None:
    def grown(seed: int, near: float, far: float) -> dict[str, Any]:
        distance = [{"value": 128, "n": 10, "accuracy": near, "loss": 0.0},
                    {"value": 1024, "n": 30, "accuracy": far, "loss": 0.0}]  # fmt: skip
        share = (near + 3 * far) / 4
        told = [{"length": n, "steps": 5, "accuracy": share, "distance": distance} for n in (512, 4096)]
        return {"seed": seed, "chance": 0.01, "stages": told}

    def rows(dense: float) -> list[tuple[str, str]]:
        seen = {
            "needles, dense": [grown(s, dense, dense) for s in range(3)],
            "needles, window 256": [grown(s, dense, 0.0) for s in range(3)],
            "needles, ALiBi": [grown(s, dense, dense) for s in range(3)],
        }
        return [(f.verdict, f.measured) for f in get_claim("TH4").judge(seen)]

    assert beyond(grown(0, 1.0, 0.5)["stages"][0]) == 0.5
    assert [verdict for verdict, _ in rows(1.0)] == ["does not hold", "holds"]
    assert rows(1.0)[0][1] == "4,096 tokens 25.0 ± 0.0 % (0.0 % beyond 256 tokens)"
    assert {verdict for verdict, _ in rows(0.3)} == {"not measured"}


def test_a_search_must_beat_chance_and_the_uniform_pattern_of_its_cost() -> None:
    def rows(seed: int, reward: float, loss: float) -> list[dict[str, Any]]:
        return [
            {"method": m, "held_reward": (reward if m == "grpo" else 0.0) + 0.001 * seed, "cost": 0.5, "pattern": "p",
             "held_loss": (loss if m == "grpo" else 2.0) + 0.001 * seed, "shuffled": [loss + 0.5], "curve": []}
            for m in METHODS
        ]  # fmt: skip

    uniform = {"full": {"held_loss": 1.0, "cost": 1.0}, "window:size=8": {"held_loss": 1.5, "cost": 0.4},
               "sinks:size=8,sinks=4": {"held_loss": 1.7, "cost": 0.4}}  # fmt: skip
    no, yes = "does not hold", "holds"
    for reward, loss, verdicts in ((0.1, 1.2, [yes, yes, yes]), (0.0, 1.6, [no, no, yes]), (0.0, 1.8, [no, no, no])):
        common = {"uniform": uniform, "evaluations": 16, "held_base": 1.0, "cost_batch": 1, "cost_length": 64,
                  "config": {"model": {"layers": 2, "heads": 4}, "task": {"length": 64}}}  # fmt: skip
        seen = {"search": [{"seed": s, "rows": rows(s, reward, loss), **common} for s in range(3)]}
        found = [f for f in get_claim("TH5").judge(seen) if "grpo" in f.statement]
        assert [f.verdict for f in found] == verdicts
        assert "window:size=8 1.5000 at 0.400" in found[1].control
        assert "sinks:size=8,sinks=4 1.7000 at 0.400" in found[2].control


def test_a_pattern_slower_than_dense_anywhere_does_not_hold() -> None:
    def row(name: str, ratio: float) -> dict[str, Any]:
        return {"arm": f"pattern:{name}", "case": {"n": 4096, "step": "forward"}, "ratio": {"dense:flash": ratio}}

    rows = [row("window:size=9", 3.0), row("window:size=8", 2.0), row("alibi", 1.2), row("alibi", 0.9),
            row("alibi:prune=0.1", 1.4)]  # fmt: skip
    found = {f.statement.split(" through")[0]: f.verdict for f in get_claim("TH8").judge({"bench": [{"rows": rows}]})}
    assert found == {"window": "holds", "alibi": "does not hold", "alibi, pruned": "holds"}


def test_every_arm_of_the_claims_is_a_config_that_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.models import CausalLM

    monkeypatch.setenv("TURNOUT_TEXT", "text")
    for name in ("TH1", "TH4", "TH5", "TH7"):
        for one in get_claim(name).arms():
            config = one.config(0)
            CausalLM(config.model, vocab=8).check_length(config.task.length)


def test_evidence_is_the_last_place_with_the_same_four_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, (3, 40), generator=generator)
    have = evidence_distance(tokens)
    for row, line in enumerate(tokens.tolist()):
        for t in range(40):
            seen = [s for s in range(3, t) if t >= 3 and line[s - 3 : s + 1] == line[t - 3 : t + 1]]
            assert have[row, t] == (t - seen[-1] if seen else 0)


def test_equal_time_is_dense_steps_at_the_measured_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_TEXT", "text")
    monkeypatch.setattr(
        "turnout.claims.pattern_time.step_times", lambda: {"dense": 4.0, "forgetting": 8.0, "ALiBi": 2.0}
    )
    steps = {arm.name: arm.config(0).schedule.steps for arm in get_claim("TH6").arms()}
    same = {"dense": 800, "forgetting": 800, "ALiBi": 800}
    assert steps == {**same, "forgetting, equal time": 400, "ALiBi, equal time": 1600}


def test_steps_are_timed_in_turn_once_all_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    class Timed:
        """A dense step takes 4 ms, but 40 where the GPU is busy with something else: in one of the rounds."""

        def __init__(self, config: Any) -> None:
            self.config, self.step_count, self.last_ms = config, 0, 0.0
            self.name = config.model.pattern

        def train(self, *, stop_after: int) -> None:
            turns.append(self.name)
            self.step_count, slow = stop_after, turns.count(self.name) == 3
            self.last_ms = (40.0 if slow else 4.0) if self.name == "full" else 3.0

    monkeypatch.setattr("turnout.train.loop.Trainer", Timed)
    monkeypatch.setattr(pattern_time, "text_arms", lambda: [a for a in text_arms() if a.name in ("dense", "ALiBi")])
    found = pattern_time.measure("cpu")
    assert found["ms"] == {"dense": 4.0, "ALiBi": 3.0} and sorted(found["rounds"]["dense"])[-1] == 40.0
    rounds = [turns[i : i + 2] for i in range(0, len(turns), 2)]
    assert len(rounds) == 1 + pattern_time.ROUNDS and all(set(one) == {"full", "alibi"} for one in rounds)
    assert {one[0] for one in rounds[1:]} == {"full", "alibi"}, "always in the same order"


def test_a_pattern_that_is_ahead_in_less_time_is_ahead_in_the_same() -> None:
    def runs(loss: float) -> list[dict[str, Any]]:
        return [{"seed": s, "loss": loss + 0.01 * s, "steps": 800, "slices": {}} for s in range(3)]

    seen = {"bench": [{"ms": {"dense": 4.0, "window 64": 3.0, "ALiBi": 2.0, "forgetting": 5.0}}], "dense": runs(1.4),
            "window 64": runs(1.3), "ALiBi": runs(1.5), "forgetting": runs(1.2)}  # fmt: skip
    said = {f.statement.partition(":")[0]: f for f in get_claim("TH6").judge(seen)}
    assert {name: f.verdict for name, f in said.items()} == {"ALiBi": "does not hold", "window 64": "holds"}
    assert "75 % of the time" in said["window 64"].measured


def test_a_discovered_pattern_is_the_best_of_the_first_searches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uniform = {"full": {"held_loss": 1.0, "cost": 1.0}, "window:size=8": {"held_loss": 1.5, "cost": 0.4}}
    rows = [{"pattern": name, "held_reward": reward, "cost": 0.5} for name, reward in (("bad", -1.0), ("good", -0.1))]
    assert rival({"uniform": uniform}, 0.5)[0] == "window:size=8"
    assert rival({"uniform": uniform}, 0.1)[0] == "window:size=8"
    later = {"seed": 3, "rows": [{"pattern": "later", "held_reward": 0.0, "cost": 0.5}], "uniform": uniform}
    first = {"seed": 0, "rows": rows, "uniform": uniform}
    monkeypatch.setattr("turnout.claims.discovered.summaries", lambda _: {"search": [first, later]})
    assert discovered() == {"discovered": "good", "uniform at the cost of discovered": "window:size=8"}
