"""A routed mixer against itself with dense attention: what a user gets who leaves the choice to `impl="auto"`.

Every query is at hand there, so that the choice is a free one: below the measured break-even the mixer attends for the
rows taken, from it on densely for all tokens with weight 0 where nothing was taken. Router, projections, local track
and mixing are in every arm.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from turnout.bench.arms import Arm, add_ratios, dtype_of, generator_of, measure_arms, pinned
from turnout.bench.block_cost import ForcedRouter
from turnout.bench.breakeven import FRACTIONS, GPU_LENGTHS
from turnout.bench.cases import PASSES, Case
from turnout.bench.layers import build_block, layer_call
from turnout.bench.rows import Row
from turnout.bench.self_check import check_attend
from turnout.layers import RoutedMixer
from turnout.routers.mode import RoutingMode


def default_cases() -> list[Case]:
    """Every length and fraction of the break-even table, forward and forward + backward."""
    return [Case(n=n, p=p, batch=batch, step=step) for step in PASSES for n, batch in GPU_LENGTHS for p in FRACTIONS]


def measure_dispatch(case: Case, *, device: torch.device, seconds: float = 0.3) -> list[Row]:
    """Dense arms (on a GPU pinned to flash and to cuDNN) and the mixer as it chooses; exactly round(p·N) rows."""
    generator, dtype = generator_of(case, device), dtype_of(case)
    x = torch.randn(case.batch, case.n, case.width, device=device, dtype=dtype, generator=generator)
    order = torch.rand(case.batch, case.n, 1, device=device, generator=generator).argsort(1).argsort(1)
    block = build_block(replace(case, part="mixer"), "R", device)
    assert isinstance(block.mixer, RoutedMixer)
    block.mixer.router = ForcedRouter(block.mixer.router, order < case.rows)  # type: ignore[assignment]
    arms: dict[str, Arm] = {}
    for backend in ("flash", "cudnn") if device.type == "cuda" else ("",):
        call = pinned(backend, layer_call(block, x, RoutingMode(skip=False), case))
        arms[f"dense:{backend or 'sdpa'}"] = Arm(call=call, flops=0.0, n_bytes=0.0)
    mode = RoutingMode(capacity=case.rows)
    arms["routed:auto"] = Arm(
        call=layer_call(block, x, mode, case), flops=0.0, n_bytes=0.0, wrong=check_attend(case, "auto", device)
    )
    return add_ratios(measure_arms("dispatch", case, arms, device=device, seconds=seconds))
