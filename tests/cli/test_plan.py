from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from turnout.cli.plan import estimate_memory, plan
from turnout.config import from_dict
from turnout.errors import DataError
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.recipes import get_recipe
from turnout.tasks import RecallConfig
from turnout.train.config import OptimConfig, RunConfig

SMALL = RunConfig(
    task=RecallConfig(length=64), model=ModelConfig(layers=2, width=16, heads=2), optim=OptimConfig(batch=4)
)


def activations(config: RunConfig) -> int:
    model = CausalLM(config.model, vocab=config.task.vocab)
    return estimate_memory(model, config, config.task.length)["activations"]


def test_a_plan_counts_what_the_model_really_has() -> None:
    data = plan(SMALL).data
    model = CausalLM(SMALL.model, vocab=256)
    assert data["parameters"] == sum(p.numel() for p in model.parameters())
    assert data["memory_bytes"]["weights_and_optimizer"] == 16 * data["parameters"]
    assert data["flops_per_sequence"]["no gate open"] == model.block_flops(64, [0.0, 0.0])
    assert data["flops_per_sequence"]["every gate open"] == model.block_flops(64, [1.0, 1.0])
    assert from_dict(RunConfig, data["config"]) == SMALL


def test_the_guard_may_stretch_ramp_and_hold_fourfold() -> None:
    data = plan(SMALL).data
    schedule = SMALL.schedule
    assert data["steps"] == schedule.explore_steps + schedule.ramp_steps + schedule.hold_steps
    assert data["steps_at_most"] == data["steps"] + 3 * (schedule.ramp_steps + schedule.hold_steps)


def test_activations_grow_with_the_tokens_of_a_micro_batch() -> None:
    one = activations(SMALL)
    assert activations(replace(SMALL, optim=OptimConfig(batch=8))) == 2 * one
    longer = activations(replace(SMALL, task=RecallConfig(length=512)))
    assert longer == pytest.approx(8 * one, rel=0.1)
    assert activations(replace(SMALL, optim=OptimConfig(batch=4, max_tokens=128))) == one / 2


def test_activations_hold_at_least_the_inputs_of_every_linear_map() -> None:
    # Floats per token and layer: two norms, the input of Wo, the hidden layer before and after GELU.
    least = 4 * 64 * 2 * 4 * (2 * 16 + 16 + 2 * 64)
    assert least < activations(SMALL) < 10 * least


def test_controls_that_need_hints_or_a_second_sequence_can_be_planned() -> None:
    for router in ("oracle", "shuffled", "random:p=0.1"):
        routing = replace(SMALL.model.routing, router=router)
        assert plan(replace(SMALL, model=replace(SMALL.model, routing=routing))).data["parameters"] > 0


def test_a_text_that_is_not_there_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        plan(get_recipe("text").config({"task.path": str(tmp_path / "no.txt")}))
