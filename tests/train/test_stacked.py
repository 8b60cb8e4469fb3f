from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from turnout.errors import ConfigError
from turnout.models.testbed import TestBed
from turnout.models.testbed_config import TestBedConfig
from turnout.tasks import RetrievalConfig, TrailingMQARConfig
from turnout.train.stacked import StackedTrainer, one_cycle, train_together
from turnout.train.stacked_config import BedRunConfig

SMALL = BedRunConfig(
    task=RetrievalConfig(length=32, min_distance=12, vocab=48, distractors=1),
    model=TestBedConfig(width=16, heads=2),
    lrs=(3e-3, 1e-2),
    steps=30,
    batch=8,
    train_sequences=64,
    test_sequences=50,
    evaluations=3,
)


def seeds(config: BedRunConfig, n: int = 2) -> list[BedRunConfig]:
    return [replace(config, seed=seed) for seed in range(n)]


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("train_s", "runs_together")} for record in records]


@pytest.mark.parametrize("flow", ["none", "attention"])
def test_runs_that_train_together_are_the_runs_that_train_alone(flow: str) -> None:
    config = replace(SMALL, model=replace(SMALL.model, flow=flow), answer=True, steps=6)
    together = StackedTrainer(seeds(config))
    together.train()
    for seed in range(2):
        for j, lr in enumerate(config.lrs):
            alone = StackedTrainer([replace(config, seed=seed, lrs=(lr,))])
            alone.train()
            row = together.theta[seed * 2 + j].detach()
            # Six steps at rate 1e-2: batched products may round differently, nothing else.
            wrong = (row - alone.theta[0].detach()).abs().max()
            assert wrong <= 6 * lr * 1e-2, f"seed {seed}, lr {lr}: {wrong}"


def test_the_schedule_is_torchs_one_cycle() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optim = torch.optim.AdamW([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, max_lr=1.0, total_steps=50)
    wanted = []
    for _ in range(50):
        wanted.append(optim.param_groups[0]["lr"])
        optim.step()
        schedule.step()
    mine = one_cycle(torch.arange(50, dtype=torch.float32), 50)
    assert (mine - torch.tensor(wanted)).abs().max() < 50 * torch.finfo(torch.float32).eps


def test_the_optimiser_is_torchs_adamw_with_a_clip_per_run() -> None:
    config = replace(SMALL, lrs=(1e-2,), steps=5, clip=0.1)
    mine = StackedTrainer([config])
    order = mine._order()
    plain = TestBed(config.model, vocab=48, length=32, seed=0)
    optim = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, max_lr=1e-2, total_steps=5, cycle_momentum=False)
    for i in range(5):
        tokens, at, evidence, _ = (part[0] for part in mine.data.batch(order[:, i], 1))
        score, _ = plain(tokens, at)
        loss = -score.log_softmax(-1).gather(-1, evidence[..., None]).mean()
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.clip)
        # Parameters without a gradient still decay here, so they get one of zero there.
        for parameter in plain.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optim.step()
        schedule.step()
    mine.train()
    trained = mine.trained(0, 1e-2).state_dict()
    for name, value in plain.state_dict().items():
        # torch adds 1e-6 to the norm it clips by: a relative difference of 1e-5 in gradients that Adam normalises.
        assert (trained[name] - value).abs().max() < 5 * 1e-2 * 1e-2, name


def test_a_router_learns_identity_match_from_raw_embeddings_and_the_value_only_with_a_shift() -> None:
    long = replace(SMALL, lrs=(1e-2,), steps=300, batch=32, train_sequences=2000)
    value = replace(SMALL.task, label="value")

    def precision(config: BedRunConfig) -> float:
        return float(train_together([config])[0]["runs"][0]["pk"])

    assert precision(long) > 0.95
    no_neighbour = replace(long.model, expand=0)
    raw = precision(replace(long, task=value, model=no_neighbour))
    shifted = precision(replace(long, task=value, model=replace(no_neighbour, flow="shift")))
    assert raw < 0.5 and shifted > 0.9


def test_frozen_parts_keep_their_weights() -> None:
    config = replace(SMALL, freeze_flow=True, model=replace(SMALL.model, flow="attention"))
    trainer = StackedTrainer([config])
    before = trainer.trained(0, 3e-3).state_dict()
    trainer.train()
    after = trainer.trained(0, 3e-3).state_dict()
    for name, value in before.items():
        moved = not torch.equal(value, after[name])
        assert moved == name.startswith(("selector", "norm")) or not name.startswith(("embed", "place", "flow")), name
    assert torch.equal(before["embed"], after["embed"]) and not torch.equal(
        before["selector.q.weight"], after["selector.q.weight"]
    )


def test_records_repeat_exactly_and_carry_curve_and_mechanics() -> None:
    first, again = (without_times(train_together(seeds(SMALL))) for _ in range(2))
    assert first == again
    run = first[0]["runs"][0]
    assert [point[0] for point in run["curve"]] == [10, 20, 30]
    assert {"k90", "k90_untrained", "cosine_gap", "pk_random_twin", "pk_shuffled"} <= run.keys()


def test_precision_is_told_by_distance_and_at_other_numbers_of_picks() -> None:
    config = replace(SMALL, tops=(1, 4, 31), band=4, model=replace(SMALL.model, expand=0), test_sequences=100)
    (record,) = train_together([config])
    gaps = torch.cat([(b.evidence - b.at).abs() for b in config.task.build(0).eval_batches(2, 50)]).flatten() // 4 * 4
    for run in record["runs"]:
        assert run["tops"]["1"] == run["p1"] and run["tops"]["4"] == run["pk"] and run["tops"]["31"] == 1.0
        assert set(run["bands"]) == {str(int(g)) for g in gaps.unique()}
        whole = sum(run["bands"][str(int(g))] for g in gaps) / len(gaps)
        # Bands and precision are rounded to five digits.
        assert abs(whole - run["precision"]) <= 1e-5


@pytest.mark.parametrize(("flow", "still"), [("attention:form=causal,taps=2", True), ("attention", False)])
def test_a_record_says_whether_the_future_moved_the_past(flow: str, still: bool) -> None:
    run = train_together([replace(SMALL, model=replace(SMALL.model, flow=flow), steps=4)])[0]["runs"][0]
    assert (run["past_moved"] == 0) == still


def test_a_run_that_diverges_is_recorded_beside_one_that_does_not() -> None:
    good, bad = train_together([replace(SMALL, lrs=(3e-3, 1e30), clip=0.0, steps=6)])[0]["runs"]
    assert bad["diverged"] and bad["pk"] == 0
    assert "diverged" not in good and "k90" in good


def test_answers_are_graded_with_oracle_picks_beside() -> None:
    config = replace(SMALL, answer=True, steps=5, task=TrailingMQARConfig(length=20, pairs=4, vocab=32))
    run = train_together([config])[0]["runs"][0]
    assert 0 <= run["accuracy"] <= 1 and 0 <= run["oracle_accuracy"] <= 1


def test_untrained_indices_are_evaluated_without_a_step() -> None:
    config = replace(SMALL, steps=0, model=replace(SMALL.model, selector="exact"))
    run = train_together([config])[0]["runs"][0]
    assert run["p1"] == 1.0 and run["curve"] == []


def test_different_arms_do_not_stack() -> None:
    with pytest.raises(ConfigError, match="seed"):
        StackedTrainer([SMALL, replace(SMALL, steps=31)])


@pytest.mark.parametrize(
    ("changes", "words"), [({"lrs": ()}, "lrs"), ({"batch": 0}, "batch"), ({"train_sequences": 3}, "one batch"),
                           ({"tops": (0,)}, "picks"), ({"band": -1}, "band")],
)  # fmt: skip
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(SMALL, **changes)


@pytest.mark.parametrize(("changes", "words"), [({"positions": "rope"}, "positions"), ({"heads": 3}, "heads")])
def test_impossible_beds_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TestBedConfig(**changes)


@pytest.mark.gpu
def test_a_replayed_step_trains_like_an_eager_one() -> None:
    graph = StackedTrainer(seeds(SMALL), "cuda")
    eager = StackedTrainer(seeds(SMALL), "cuda", graph=False)
    graph.train()
    eager.train()
    assert (graph.theta - eager.theta).abs().max() < 30 * 1e-2 * 1e-2
