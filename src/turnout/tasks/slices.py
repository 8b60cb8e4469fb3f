"""Buckets that metrics are grouped by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def floor_power_of_two(value: torch.Tensor) -> torch.Tensor:
    """The largest power of two <= value, for int64 values >= 1 below 2^53."""
    import torch

    return torch.ones_like(value) << (torch.frexp(value.to(torch.float64)).exponent.to(torch.int64) - 1)
