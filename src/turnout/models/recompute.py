"""Activation checkpointing of one block: its gates and its running buffers are the same when it is computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turnout.routers.mode import RoutingMode
from turnout.routers.query import Route


def recomputed(block: nn.Module, x: Tensor, mode: RoutingMode, hint: Tensor | None) -> tuple[Tensor, Route | None]:
    """`block(x)` of which only `x` is kept for the backward pass.

    The gate noise comes from a generator of its own, which torch does not rewind, and routers keep running statistics
    in buffers: both are put back for the second pass, so that it decides what the first one decided.

    Cost: a second forward pass of the block. Memory: its input.
    """
    generator = mode.generator if mode.sample else None
    noise = None if generator is None else generator.get_state()
    before = [buffer.clone() for buffer in block.buffers()]
    again = False

    def run(value: Tensor) -> tuple[Tensor, Route | None]:
        nonlocal again
        if not again:
            again = True
            y, route, _ = block(value, mode=mode, hint=hint)
            return y, route
        with _Rewound(block, before):
            y, route, _ = block(value, mode=_rewound(mode, noise), hint=hint)
        return y, route

    y, route = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
    return y, route


def _rewound(mode: RoutingMode, noise: Tensor | None) -> RoutingMode:
    """The mode with a generator that draws once more what was drawn from `noise`; the real one is left alone."""
    if noise is None or mode.generator is None:
        return mode
    generator = torch.Generator(mode.generator.device)
    generator.set_state(noise)
    return replace(mode, generator=generator)


class _Rewound:
    """The block's buffers as they were, for the time of the second pass."""

    def __init__(self, block: nn.Module, before: list[Tensor]) -> None:
        self.block, self.before = block, before

    def __enter__(self) -> None:
        self.now = [buffer.clone() for buffer in self.block.buffers()]
        self._put(self.before)

    def __exit__(self, *_: Any) -> None:
        self._put(self.now)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.block.buffers(), values, strict=True):
            # Not in place: autograd of the first pass may still hold the buffer's version.
            buffer.data = value.clone()
