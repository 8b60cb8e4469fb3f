"""Padding: where the real tokens of each sequence lie, and how they move to the front and back.

B sequences, T places, E width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ShapeError
from turnout.routers.query import Route


def spans(mask: Tensor) -> tuple[Tensor, Tensor]:
    """First place and number of the real tokens of each sequence, int64 [B] each, of a mask [B, T] (1 = real).

    Raises:
        ShapeError: another shape, or padding between real tokens.
    """
    if mask.ndim != 2:
        raise ShapeError(f"attention_mask {list(mask.shape)}; expected [batch, length] with 1 for real tokens")
    real = mask.to(torch.bool)
    count = real.sum(1)
    first = real.int().argmax(1)
    place = torch.arange(mask.shape[1], device=mask.device)
    inside = (place >= first[:, None]) & (place < (first + count)[:, None])
    if not torch.equal(inside & (count > 0)[:, None], real):
        raise ShapeError("attention_mask has padding between real tokens; expected it on the left or the right only")
    return first, count


def to_front(x: Tensor, first: Tensor) -> Tensor:
    """Each sequence of x [B, T, E] moved left by `first` [B]; what comes after its end is anything."""
    return _moved(x, first)


def to_back(x: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """The inverse of `to_front`, for anything [B, T, ...]; zeros at the padding."""
    place = torch.arange(x.shape[1], device=x.device)
    real = (place >= first[:, None]) & (place < (first + count)[:, None])
    moved = _moved(x, -first)
    return torch.where(
        real.view(*real.shape, *[1] * (x.ndim - 2)), moved, torch.zeros((), dtype=x.dtype, device=x.device)
    )


def route_back(route: Route | None, first: Tensor, count: Tensor) -> Route | None:
    """A route in the places of the padded batch; padding is not taken."""
    if route is None:
        return None
    fields: dict[str, Any] = {name: to_back(getattr(route, name), first, count) for name in ("gate", "weight", "taken")}
    return replace(route, **fields)


def _moved(x: Tensor, by: Tensor) -> Tensor:
    place = torch.arange(x.shape[1], device=x.device)
    index = (place + by[:, None]) % x.shape[1]
    return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand_as(x))
