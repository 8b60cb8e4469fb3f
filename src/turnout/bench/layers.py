"""Rows of a whole mixer or block: norms, projections, router, compaction, scatter and local track inside the timing.

B batch, N tokens, E width, p fraction of rows that attend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from turnout.bench.arms import Arm, add_ratios, dtype_of, generator_of, measure_arms, pinned
from turnout.bench.block_cost import ForcedRouter
from turnout.bench.cases import Case
from turnout.bench.rows import Row
from turnout.bench.self_check import check_attend
from turnout.layers import RoutedMixer
from turnout.models.block import Block
from turnout.models.config import ModelConfig
from turnout.routers.mode import RoutingMode

GPU_SIZES = ((8192, 4), (32768, 1))


def default_case(device: torch.device, **changes: object) -> Case:
    """Width 1,024 with 16 heads in bfloat16 on a GPU; width 256 with 4 heads in float32 on a CPU."""
    if device.type == "cpu":
        base = {"n": 2048, "p": 1 / 64, "heads": 4, "kv_heads": 4, "dim": 64, "dtype": "float32", "part": "mixer"}
    else:
        base = {"n": 8192, "p": 1 / 4, "heads": 16, "kv_heads": 16, "dim": 64, "part": "block"}
    return Case(**{**base, **changes})  # type: ignore[arg-type]


def default_cases(device: torch.device) -> list[Case]:
    """The target sizes, forward and forward + backward."""
    steps = ("forward", "forward+backward")
    if device.type == "cpu":
        return [default_case(device, p=p, step=step) for p in (1 / 64, 1 / 4) for step in steps]
    return [default_case(device, n=n, batch=batch, step=step) for n, batch in GPU_SIZES for step in steps]


def measure_layer(
    case: Case, *, device: torch.device, impl: str = "auto", seconds: float = 1.0, profiles: bool = False
) -> list[Row]:
    """Dense attention, the local track alone and the routed layer with a linear router.

    The router is computed and paid for; the rows taken are the case's, at random places.
    """
    generator, dtype = generator_of(case, device), dtype_of(case)
    x = torch.randn(case.batch, case.n, case.width, device=device, dtype=dtype, generator=generator)
    order = torch.rand(case.batch, case.n, 1, device=device, generator=generator).argsort(1).argsort(1)
    taken = order < case.rows
    blocks = {kind: build_block(case, kind, device) for kind in "ALR"}
    mixer = blocks["R"].mixer
    assert isinstance(mixer, RoutedMixer)
    mixer.router = ForcedRouter(mixer.router, taken)  # type: ignore[assignment]
    capacity = case.rows if device.type == "cuda" else None
    mode = RoutingMode(capacity=capacity, impl=impl)
    arms: dict[str, Arm] = {}
    for backend in ("flash", "cudnn") if device.type == "cuda" else ("",):
        call = pinned(backend, layer_call(blocks["A"], x, RoutingMode(), case))
        arms[f"dense:{backend or 'sdpa'}"] = Arm(call=call, flops=_flops(blocks["A"], case, 1.0), n_bytes=0.0)
    local = layer_call(blocks["L"], x, RoutingMode(), case)
    arms["local"] = Arm(call=local, flops=_flops(blocks["L"], case, 0.0), n_bytes=0.0)
    arms[f"routed:{impl}"] = Arm(
        call=layer_call(blocks["R"], x, mode, case), flops=_flops(blocks["R"], case, case.rows / case.n), n_bytes=0.0,
        wrong=check_attend(case, impl, device),
    )  # fmt: skip
    return add_ratios(measure_arms("layer", case, arms, device=device, seconds=seconds, profiles=profiles))


def layer_config(case: Case, kind: str) -> ModelConfig:
    """A short convolution without projections as local track and no biases; in a block also rotary positions."""
    rotary = case.part == "block" and case.dim % 2 == 0
    return ModelConfig(
        layers=1, width=case.width, heads=case.heads, kv_heads=case.kv_heads, layout=kind,
        local="conv:kernel=4,project=false", positions="rope" if rotary else "none", form="llama",
    )  # fmt: skip


def build_block(case: Case, kind: str, device: torch.device) -> Block:
    """One block, kind "A", "L" or "R", with weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Block(layer_config(case, kind), 0, 0).to(device=device, dtype=dtype_of(case))


def layer_call(block: Block, x: Tensor, mode: RoutingMode, case: Case) -> Callable[[], object]:
    """Forward, or forward and the gradients of the input and of all weights."""
    module = block.mixer if case.part == "mixer" else block

    if case.step == "forward":

        def forward() -> object:
            with torch.no_grad():
                return module(x, mode=mode)[0]

        return forward
    leaf = x.detach().clone().requires_grad_()

    def both() -> None:
        module.zero_grad(set_to_none=True)
        leaf.grad = None
        module(leaf, mode=mode)[0].square().mean().backward()

    return both


def _flops(block: Block, case: Case, usage: float) -> float:
    module = block.mixer if case.part == "mixer" else block
    return case.batch * module.flops(case.n, usage) * (1 if case.step == "forward" else 3)
