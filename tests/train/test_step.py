"""How a step is computed changes its time, not what it learns; and optimisers that can be resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.routers.mode import RoutingMode
from turnout.tasks import RecallConfig
from turnout.train import checkpoint
from turnout.train.config import OptimConfig
from turnout.train.muon import ShardedMuon
from turnout.train.optimizers import split_matrices
from turnout.train.schedule import Joint, wsd
from turnout.train.step import Stepper
from turnout.train.throughput import Throughput

MODEL = ModelConfig(
    layers=2, width=32, heads=2, local="conv:kernel=3", form="llama",
    routing=RoutingConfig(router="threshold:usage=0.3"),
)  # fmt: skip
PLAIN = OptimConfig(batch=4, lr=1e-2)


def steps(optim: OptimConfig, n: int = 3, model: ModelConfig = MODEL) -> tuple[Stepper, dict[str, Any]]:
    task = RecallConfig(length=16).build(0)
    lm = CausalLM(model, vocab=task.vocab).train()
    gates = torch.Generator().manual_seed(0)
    stepper = Stepper(lm, optim, generator=gates)
    mode = RoutingMode(skip=False, sample=True, generator=gates)
    for _ in range(n):
        stepper.step([task.train_batch(4)], Joint.idle(), mode, optim.lr)
    return stepper, stepper.read()


def weights(stepper: Stepper) -> dict[str, torch.Tensor]:
    return stepper.model.state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_bits(dropout: float) -> None:
    plain, _ = steps(PLAIN, model=replace(MODEL, dropout=dropout))
    again, _ = steps(replace(PLAIN, checkpointing=True), model=replace(MODEL, dropout=dropout))
    for name, weight in weights(plain).items():
        assert torch.equal(weight, weights(again)[name]), name


@pytest.mark.parametrize("changes", [{"loss_chunk": 3}, {"precision": "bf16"}, {"precision": "bf16_stream"}])
def test_other_ways_to_compute_a_step_learn_the_same_within_their_precision(changes: dict[str, Any]) -> None:
    """One step of AdamW moves every weight by about lr whatever its gradient, so losses are compared, not weights."""
    _, plain = steps(PLAIN, 1)
    _, other = steps(replace(PLAIN, **changes), 1)
    # A loss of ~3 behind two layers and a head: each rounds its output once.
    eps = torch.finfo(torch.bfloat16 if "precision" in changes else torch.float32).eps
    assert abs(plain["task_loss"] - other["task_loss"]) <= 8 * eps * plain["task_loss"]
    assert plain["task_loss"] != other["task_loss"] or "loss_chunk" in changes
    assert plain["usage"] == pytest.approx(other["usage"], abs=0.1)
    assert other["accuracy"] is not None


@pytest.mark.parametrize("changes", [{}, {"loss_chunk": 7}, {"checkpointing": True}, {"accumulate": 2}])
def test_every_way_to_compute_a_step_keeps_packed_documents_apart(changes: dict[str, Any]) -> None:
    task = RecallConfig(length=16).build(0)
    batch = task.train_batch(4)
    starts = torch.arange(16).div(4, rounding_mode="floor").mul(4).expand(4, 16)
    model, losses = replace(MODEL, routing=RoutingConfig(router="ema")), []
    for item in (batch, replace(batch, starts=starts)):
        stepper = Stepper(CausalLM(model, vocab=task.vocab), replace(PLAIN, **changes), generator=torch.Generator())
        mode = RoutingMode(skip=False)
        stepper.step([item] * stepper.config.accumulate, Joint.idle(), mode, PLAIN.lr)
        losses.append(stepper.read()["task_loss"])
    separate = replace(
        batch, tokens=batch.tokens.unflatten(1, (-1, 4)).flatten(0, 1)[3::4], at=batch.at % 4, starts=None,
        hint=batch.hint[:, 12:],
    )  # fmt: skip
    assert (batch.at >= 12).all()
    stepper = Stepper(CausalLM(model, vocab=task.vocab), PLAIN, generator=torch.Generator())
    stepper.step([separate], Joint.idle(), RoutingMode(skip=False), PLAIN.lr)
    assert losses[1] == pytest.approx(stepper.read()["task_loss"], rel=64 * torch.finfo(torch.float32).eps)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_compiled_blocks_learn_what_eager_ones_learn() -> None:
    config = replace(MODEL, layers=1, routing=RoutingConfig(router="random:p=0.5"))
    task = RecallConfig(length=16).build(0)
    batch, losses = task.train_batch(4), []
    for compiled in (False, True):
        lm = CausalLM(config, vocab=task.vocab).train()
        if compiled:
            for block in lm.blocks:
                block.compile(backend="eager", dynamic=False)
            lm.compiled = True
        gates = torch.Generator().manual_seed(0)
        stepper = Stepper(lm, PLAIN, generator=gates)
        for _ in range(2):
            stepper.step([batch], Joint.idle(), RoutingMode(skip=False, sample=True, generator=gates), 1e-2)
        losses.append((stepper.read(), weights(stepper)))
    assert losses[0][0] == losses[1][0]
    assert all(torch.equal(weight, losses[1][1][name]) for name, weight in losses[0][1].items())


def test_muon_takes_the_matrices_of_the_blocks_and_resumes_to_the_bit() -> None:
    optim = replace(PLAIN, optimizer="muon")
    stepper, seen = steps(optim)
    _, adamw = steps(PLAIN)
    assert seen["loss"] != adamw["loss"]
    matrices, rest = split_matrices(stepper.model.named_parameters())
    names = {id(p): name for name, p in stepper.model.named_parameters()}
    assert all("weight" in names[id(p)] and names[id(p)].startswith("blocks.") for p in matrices)
    assert {"embed.weight", "head.weight"} <= {name for name, _ in rest}
    assert len(matrices) + len(rest) == len(names)

    task = RecallConfig(length=16).build(1)
    batch = task.train_batch(4)
    lm = CausalLM(MODEL, vocab=task.vocab).train()
    lm.load_state_dict(weights(stepper))
    gates = torch.Generator().manual_seed(9)
    resumed = Stepper(lm, optim, generator=gates)
    tensors = checkpoint.flatten_optimizer(stepper.optimizer, stepper.model.named_parameters())
    assert any(name.endswith("momentum_buffer") for name in tensors)
    checkpoint.restore_optimizer(resumed.optimizer, lm.named_parameters(), tensors)
    for one in (stepper, resumed):
        mode = RoutingMode(skip=False, sample=True, generator=torch.Generator().manual_seed(4))
        one.step([batch], Joint.idle(), mode, 1e-2)
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(stepper).items())


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
def test_muon_for_shards_steps_whole_matrices_as_torch_does_to_the_bit(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start, grads = torch.randn(shape, generator=generator), torch.randn(3, *shape, generator=generator)
    ends = []
    for kind in (torch.optim.Muon, ShardedMuon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for grad in grads:
            weight.grad = grad.clone()
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_wsd_is_flat_and_then_falls_to_a_tenth() -> None:
    assert [wsd(x) for x in (0.0, 0.5, 0.8)] == [1, 1, 1]
    assert wsd(0.9) == pytest.approx(0.55) and wsd(1.0) == pytest.approx(0.1) == wsd(1.5)


def test_operations_counted_are_those_of_the_tracks_that_ran() -> None:
    model = CausalLM(MODEL, vocab=50)
    count = Throughput(model, torch.device("cpu"))
    head = 3 * 2 * 50 * 32
    assert count.conditional(64, [0.25, 0.5], skipping=True) == pytest.approx(
        3 * model.block_flops(64, [0.25, 0.5]) / 64 + head
    )
    both = count.conditional(64, [0.25, 0.5], skipping=False)
    assert both == count.conditional(64, [1.0, 1.0], skipping=True) > count.conditional(64, [0.25, 0.5], skipping=True)
    dense = CausalLM(replace(MODEL, layout="A"), vocab=50)
    assert count.dense_equivalent(64) == pytest.approx(3 * dense.block_flops(64, [1, 1]) / 64 + head)
    record = count.record(1e6, 64, [0.25, 0.5], skipping=True)
    assert record["mfu"] is None and record["tflops"] < record["tflops_dense_equivalent"]
