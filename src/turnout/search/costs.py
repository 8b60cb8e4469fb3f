"""Measured milliseconds of reading by some heads of a layer together, for each action: what a choice costs.

A actions, G kv heads, B batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from turnout.bench.timing import time_interleaved
from turnout.layers.reading import read
from turnout.models.config import ModelConfig
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern import PATTERNS, PatternContext

Costs = list[list[float]]
"""Milliseconds of action a on n kv heads at [a][n - 1]."""


@torch.no_grad()
def measure_costs(config: ModelConfig, actions: Sequence[str], tokens: Tensor, *, seconds: float = 4.0) -> Costs:
    """Time every action on 1 to G kv heads of one layer, interleaved, the pattern's own work included.

    Args:
        tokens: sequences that are read, int64 [B, N] on the device; only routers look at what they are.
    """
    device, (n_batch, length) = tokens.device, tokens.shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shared, dim = config.heads // config.n_kv_heads, config.width // config.heads
    place = PatternContext(width=config.width, heads=config.heads, kv_heads=config.n_kv_heads, head_dim=dim)
    q = torch.randn(n_batch, length, config.heads, dim, device=device, dtype=dtype)
    k, v = torch.randn(2, n_batch, length, config.n_kv_heads, dim, device=device, dtype=dtype)
    x = torch.zeros(n_batch, length, config.width, device=device, dtype=dtype)
    at, mode = torch.arange(length, device=device), RoutingMode(tokens=tokens)

    def call(action: str, n: int) -> Callable[[], object]:
        context = replace(place, heads=n * shared, kv_heads=n, total=config.heads)
        pattern = PATTERNS.build(action, context=context).to(device).eval()
        mine = q[:, :, : n * shared], k[:, :, :n], v[:, :, :n]
        return lambda: read(*mine, pattern.reach(x, at=at, length=length, state=None, mode=mode))

    counts = range(1, config.n_kv_heads + 1)
    calls = {f"{a} {n}": call(action, n) for a, action in enumerate(actions) for n in counts}
    found = time_interleaved(calls, device=device, seconds=seconds, most=50)
    return [[found[f"{a} {n}"].ms for n in counts] for a in range(len(actions))]
