from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from turnout.config import to_dict
from turnout.errors import CheckpointError, ConfigError, DataError, TurnoutError
from turnout.models.config import ModelConfig, RoutingConfig
from turnout.tasks import RecallConfig, RecallHardConfig, TextConfig
from turnout.train import checkpoint
from turnout.train.config import (
    BudgetConfig,
    CurriculumConfig,
    JointConfig,
    LoopConfig,
    OptimConfig,
    RunConfig,
)
from turnout.train.evaluate import evaluate
from turnout.train.loop import Interrupted, Trainer, load_model, pick_device, train
from turnout.train.rundir import RunDir, list_runs

CURRICULUM = CurriculumConfig(
    explore_steps=2, solve_at=None, ramp_steps=4, hold_steps=2, guard=0, back_off=0, lengths=(8, 12), grow_steps=4
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_CACHE", str(tmp_path.parent / "cache"))


def tiny(router: str = "linear", **changes: Any) -> RunConfig:
    """A run of 12 steps and a fraction of a second."""
    base = RunConfig(
        device="cpu",
        threads=1,
        task=RecallConfig(length=8),
        model=ModelConfig(layers=2, width=16, heads=2, local="conv:kernel=4", routing=RoutingConfig(router=router)),
        schedule=JointConfig(cost=0.05, steps=12),
        optim=OptimConfig(batch=4, accumulate=2, warmup=5, decay="cosine"),
        loop=LoopConfig(
            log_every=2, eval_every=4, eval_sequences=8, final_sequences=8, checkpoint_every=4, savings=False
        ),
    )
    return replace(base, **changes)


def new_run(root: Path, config: RunConfig, exist: Any = "error") -> RunDir:
    return RunDir.create(root, "a", config_dict=to_dict(config), exist=exist)


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run.model_path)[0]


def without_clocks(run: RunDir) -> list[dict[str, Any]]:
    """Metrics lines without what a stopwatch wrote."""
    return [
        {k: v for k, v in line.items() if k not in ("ms", "tokens_per_s") and "tflops" not in k}
        for line in run.metrics()
    ]


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Watch:
    """Keeps the records that a run shows."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def update(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]


@pytest.mark.parametrize(
    ("router", "schedule"),
    [
        ("linear", CURRICULUM),
        ("threshold:usage=0.3", BudgetConfig(usage=0.2, steps=12)),
        ("random:p=0.1", JointConfig(steps=12)),
    ],
)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path: Path, router: str, schedule: Any) -> None:
    config = tiny(router, schedule=schedule, loop=replace(tiny().loop, skip_below=1.0))
    whole = new_run(tmp_path / "whole", config)
    Trainer(config, whole).train()
    # Stopping without saving is what kill -9 leaves: a checkpoint from before, and metrics from after it.
    cut = new_run(tmp_path / "cut", config)
    Trainer(config, cut).train(stop_after=6)
    assert cut.metrics()[-1]["step"] == 6
    again = Trainer(config, cut)
    again.load()
    assert again.step_count == 4
    again.train()
    assert same_bits(weights(whole), weights(cut))
    assert without_clocks(whole) == without_clocks(cut)
    assert [path.name for path in whole.gate_files()] == [path.name for path in cut.gate_files()]


def test_weights_kept_before_a_collapse_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[Trainer] = []

    def scripted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        """Solved at once, and collapsed at steps 8 and 10: the second time what was kept is as old as step 6."""
        return {**evaluate(*args, **kwargs), "accuracy": 0.0 if running[-1].step_count in (8, 10) else 1.0}

    def trainer(run: RunDir) -> Trainer:
        running.append(Trainer(config, run))
        return running[-1]

    monkeypatch.setattr("turnout.train.loop.evaluate", scripted)
    schedule = replace(CURRICULUM, ramp_steps=4, hold_steps=4, guard=0.5, back_off=0.5, lengths=())
    config = tiny(schedule=schedule, loop=replace(tiny().loop, eval_every=2))
    whole, cut = new_run(tmp_path / "whole", config), new_run(tmp_path / "cut", config)
    trainer(whole).train()
    trainer(cut).train(stop_after=10)
    trainer(cut).load()
    assert running[-1].step_count == 8
    running[-1].train()
    assert same_bits(weights(whole), weights(cut)) and without_clocks(whole) == without_clocks(cut)
    assert [line["step"] for line in cut.metrics("event") if "kept weights" in line["detail"]] == [8, 10]


def test_resuming_twice_from_one_checkpoint_changes_nothing(tmp_path: Path) -> None:
    config = tiny()
    run = new_run(tmp_path, config)
    Trainer(config, run).train(stop_after=6)
    metrics = without_clocks(run)
    for _ in range(2):
        trainer = Trainer(config, run)
        trainer.load()
        trainer.train(stop_after=6)
        assert without_clocks(run) == metrics


def test_a_run_killed_before_its_first_checkpoint_starts_over_in_its_folder(tmp_path: Path) -> None:
    config = tiny()
    whole = new_run(tmp_path / "whole", config)
    Trainer(config, whole).train()
    cut = new_run(tmp_path / "cut", config)
    Trainer(config, cut).train(stop_after=2)
    trainer = Trainer(config, cut)
    trainer.load()
    assert trainer.step_count == 0
    trainer.train()
    assert same_bits(weights(whole), weights(cut)) and without_clocks(whole) == without_clocks(cut)


def test_a_kill_after_the_last_step_repeats_only_the_final_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(schedule=JointConfig(steps=4))

    def killed(self: RunDir, summary: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "write_summary", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, root=tmp_path, name="a")
    run = RunDir.open(tmp_path / "a")
    before = without_clocks(run)
    assert before[-1]["final"]
    _, summary = train(config, root=tmp_path, name="a", resume=True)
    assert without_clocks(run) == before and run.summary() == json.loads(json.dumps(summary))


def test_resuming_a_finished_run_returns_its_summary_and_touches_no_metric(tmp_path: Path) -> None:
    config = tiny(schedule=JointConfig(steps=4))
    run, summary = train(config, root=tmp_path, name="a")
    before = run.metrics_path.read_bytes(), run.model_path.read_bytes()
    again, same = train(config, root=tmp_path, name="a", resume=True)
    assert same == json.loads(json.dumps(summary)) and again.path == run.path
    assert (run.metrics_path.read_bytes(), run.model_path.read_bytes()) == before


def test_ctrl_c_finishes_the_interval_saves_and_says_which_run_to_resume(tmp_path: Path) -> None:
    config = tiny()
    whole = new_run(tmp_path / "whole", config)
    Trainer(config, whole).train()

    class PressAtStep4:
        def update(self, record: dict[str, Any]) -> None:
            if record["kind"] == "train" and record["step"] == 4:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step") as caught:
        train(config, root=tmp_path, name="cut", view=PressAtStep4())
    assert signal.getsignal(signal.SIGINT) is handler
    run = caught.value.run
    assert run is not None and run.name == "cut" and caught.value.step in (4, 6)
    train(config, root=tmp_path, name="cut", resume=True)
    assert same_bits(weights(whole), weights(run))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path, tiny())
    Trainer(tiny(), run).train(stop_after=4)
    other = tiny(model=replace(tiny().model, width=32))
    with pytest.raises(CheckpointError, match="belongs to another config"):
        Trainer(other, run).load()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (tiny(task=TextConfig(path="/nowhere/at/all.txt")), DataError, "nowhere"),
        (tiny("oracle", task=TextConfig(path=__file__, length=8)), ConfigError, "no oracle"),
        (tiny(task=TextConfig(path=__file__, length=8), schedule=CurriculumConfig()), ConfigError, "solve_at"),
        (tiny("nonsense"), ConfigError, "unknown query router 'nonsense'"),
        (tiny("expert_choice"), ConfigError, "not causal.*causal variant 'threshold'"),
    ],
)
def test_a_config_that_cannot_run_leaves_no_folder(
    tmp_path: Path, config: RunConfig, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(config, root=tmp_path, name="a")
    assert list_runs(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    config = tiny()
    run = new_run(tmp_path, config)
    trainer = Trainer(config, run)
    trainer.train(stop_after=4)
    with torch.no_grad():
        trainer.model.head.weight.fill_(float("nan"))
    with pytest.raises(
        TurnoutError, match=r"loss is nan between steps 5 and 6; the checkpoint of step 4 in .* is kept"
    ):
        trainer.train()
    assert checkpoint.load(run.checkpoint_dir)[0] == 4


def test_the_learning_rate_warms_up_and_then_falls_towards_a_tenth() -> None:
    watch = Watch()
    optim = OptimConfig(lr=0.01, warmup=3, decay="cosine", batch=2)
    loop = replace(tiny().loop, log_every=1, eval_every=100)
    Trainer(tiny(schedule=JointConfig(steps=12), optim=optim, loop=loop), None, watch).train()
    rates = [line["lr"] / 0.01 for line in watch.of("train")]
    assert rates[0] == pytest.approx(2 / 3) and rates[1] == pytest.approx(1)
    assert rates[2:] == sorted(rates[2:], reverse=True) and 0.1 < rates[-1] < 0.2


def test_longer_sequences_get_smaller_micro_batches() -> None:
    optim = OptimConfig(batch=32, max_tokens=256)
    sizes = [Trainer(tiny(task=RecallConfig(length=length), optim=optim)).batch_size() for length in (4, 16, 128, 512)]
    assert sizes == [32, 16, 2, 1]


def test_the_curriculum_grows_the_length_and_the_final_evaluation_is_at_the_last(tmp_path: Path) -> None:
    config = tiny(schedule=CURRICULUM)
    run, summary = train(config, root=tmp_path, name="a")
    assert summary["length"] == 12
    lengths = [line["length"] for line in run.metrics("train")]
    assert lengths == sorted(lengths) and set(lengths) == {8, 12}
    phases = [line["phase"] for line in run.metrics("train")]
    assert list(dict.fromkeys(phases)) == ["explore", "ramp", "hold", "grow"]
    finals = [line["length"] for line in run.metrics("eval") if line.get("final")]
    assert finals == [stage["length"] for stage in summary["stages"]] == [8, 12]


def test_the_trained_model_loads_with_its_task_at_the_last_length(tmp_path: Path) -> None:
    config = tiny(schedule=CURRICULUM)
    run, _ = train(config, root=tmp_path, name="a")
    model, loaded, task = load_model(run)
    assert loaded == config and task.length == 12 and not model.training
    assert same_bits(dict(model.state_dict()), weights(run))


def test_cuda_without_a_gpu_is_a_clear_error() -> None:
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
        return
    with pytest.raises(ConfigError, match="sees no GPU; use device=cpu"):
        pick_device("cuda")


def test_routed_recall_learns_within_1500_steps_and_then_skips() -> None:
    """The main job on the smallest model that does it: solve, then close the gates that are not needed, and skip."""
    config = RunConfig(
        seed=1,
        device="cpu",
        threads=1,
        task=RecallConfig(length=16),
        model=ModelConfig(layers=1, width=32, heads=2, local="conv:kernel=4", mlp_ratio=2),
        schedule=CurriculumConfig(
            cost=0.1, explore_steps=1000, solve_at=0.98, ramp_steps=200, hold_steps=50, guard=0.95, back_off=0.8
        ),
        optim=OptimConfig(lr=6e-3),
        loop=LoopConfig(log_every=25, eval_every=25, eval_sequences=128, final_sequences=128, savings=False),
    )
    watch = Watch()
    trainer = Trainer(config, None, watch)
    summary = trainer.train()
    assert summary["solved"] and summary["steps"] <= 1500
    # A router that sees one token cannot tell the query from the same key at the start: at least 2 gates of 16.
    cheap = [line for line in watch.of("eval") if line["accuracy"] >= 0.95 and line["usage"] <= 0.25]
    assert cheap, watch.of("eval")[-5:]
    assert any(line["skipping"] for line in watch.of("train"))
    flops = [trainer.model.block_flops(16, [usage]) for usage in (cheap[-1]["usage"], 1.0)]
    assert flops[0] < flops[1]


def test_the_oracle_opens_one_gate_a_query_and_layer_and_skips_from_the_start() -> None:
    task = RecallHardConfig(length=24, pairs=2, queries=2, content=16, noise=8)
    config = tiny("oracle", task=task, schedule=JointConfig(steps=4))
    watch = Watch()
    Trainer(config, None, watch).train()
    last = watch.of("train")[-1]
    assert last["usage"] == pytest.approx(2 / 24) and last["gates_per_seq"] == pytest.approx(4.0)
    assert last["skipping"]


def test_direction_routers_may_learn_at_a_rate_of_their_own() -> None:
    model = ModelConfig(layers=1, width=16, heads=2, layout="A", directions="token:hidden=4")
    moved = {}
    for factor in (1.0, 0.5):
        config = tiny(model=model, optim=OptimConfig(batch=4, lr=1e-3, weight_decay=0.0, directions_lr=factor))
        trainer = Trainer(config)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train(stop_after=1)
        steps = trainer.step_count
        moved[factor] = {
            directed: max(
                float((p.detach() - before[name]).abs().max()) / steps
                for name, p in trainer.model.named_parameters()
                if (".directions." in name) is directed
            )
            for directed in (True, False)
        }
    # Adam's first steps are as long as the learning rate, whatever the gradient.
    assert moved[0.5][True] < 0.6 * moved[1.0][True]
    assert moved[0.5][False] > 0.9 * moved[1.0][False]


def test_a_run_without_phases_ends_at_the_evaluation_that_solves_the_task() -> None:
    watch = Watch()
    # Every accuracy is at least 0, so the first evaluation decides.
    summary = Trainer(tiny(schedule=JointConfig(steps=12, solve_at=0.0)), view=watch).train()
    assert summary["steps"] == 4
    assert any("solved at" in record["detail"] for record in watch.of("event"))
    assert Trainer(tiny(schedule=JointConfig(steps=12, solve_at=1.1))).train()["steps"] == 12
