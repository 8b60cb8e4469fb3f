"""The published sizes to the parameter, and the arms beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turnout.errors import ConfigError
from turnout.models import CausalLM, ModelConfig
from turnout.recipes import get_recipe
from turnout.recipes.directional import ARMS, SIZES, directional_model, directional_run


def parameters(config: ModelConfig, vocab: int) -> int:
    """Counted without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in CausalLM(config, vocab=vocab).parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("directional_433m", 433_088_064),
        ("directional_433m_baseline", 416_971_776),
        ("directional_433m_prefix", 433_088_064),
        ("directional_433m_matched", 433_339_392),
    ],
)
def test_the_published_models_have_exactly_their_parameters(name: str, count: int) -> None:
    config = get_recipe(name).example()
    assert parameters(config.model, config.task.vocab) == count


@pytest.mark.parametrize("size", list(SIZES))
def test_the_matched_baseline_is_the_smallest_with_the_parameters_of_the_routed_model(size: str) -> None:
    base = SIZES[size]
    routed = parameters(directional_model(size, "prefix"), base.vocab)
    matched = directional_model(size, "matched")
    # The hidden width comes in eights; 12 of the ratio's numerator are 8 hidden units.
    less = replace(matched, mlp_ratio=matched.mlp_ratio - 12 / base.width)
    assert parameters(less, base.vocab) < routed <= parameters(matched, base.vocab)
    assert parameters(directional_model(size, "baseline"), base.vocab) < routed


@pytest.mark.parametrize("arm", ARMS)
def test_arms_differ_in_the_arm_alone(arm: str) -> None:
    base, other = directional_run("cpu", "baseline", "x"), directional_run("cpu", arm, "x")
    kept = replace(other.model, directions="none", output_gate="none", mlp_ratio=base.model.mlp_ratio)
    assert replace(other, name=base.name, model=kept) == base
    assert (other.model == base.model) is (arm == "baseline")


def test_an_unknown_arm_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'prefix'"):
        directional_model("cpu", "prefx")
