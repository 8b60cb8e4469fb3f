"""How a forward pass is executed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, r"capacity=0; expected >= 1 row per sequence, or None"),
        ({"overflow": "first"}, r"overflow='first'; choose one of: confident, earliest, raise"),
    ],
)
def test_impossible_execution_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoutingMode(**options)


def test_noise_comes_from_the_generator_and_moves_only_it() -> None:
    generator = torch.Generator().manual_seed(5)
    before = torch.get_rng_state()
    drawn = RoutingMode(sample=True, generator=generator).uniform((3, 4), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand((3, 4), generator=torch.Generator().manual_seed(5)))


def test_sampling_without_a_generator_is_refused_rather_than_reading_the_global_one() -> None:
    with pytest.raises(ConfigError, match=r"no generator.*generator=torch.Generator"):
        RoutingMode(sample=True).uniform((3,), CPU)
