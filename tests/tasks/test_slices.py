from __future__ import annotations

import torch

from turnout.tasks.slices import floor_power_of_two


def test_values_are_rounded_down_to_powers_of_two() -> None:
    values = torch.arange(1, 5000)
    buckets = floor_power_of_two(values)
    assert buckets.tolist() == [1 << (value.bit_length() - 1) for value in values.tolist()]


def test_powers_of_two_and_their_neighbours_are_exact() -> None:
    powers = 1 << torch.arange(1, 50)
    assert torch.equal(floor_power_of_two(powers), powers)
    assert torch.equal(floor_power_of_two(powers - 1), powers // 2)
