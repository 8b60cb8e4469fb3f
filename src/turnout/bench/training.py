"""Rows of training: tokens a second of whole models through the loop's own step, and compiled blocks by length.

N tokens a sequence, p fraction of rows that attend.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch._dynamo

from turnout.bench.arms import Arm, add_ratios, generator_of, measure_arms, pinned
from turnout.bench.block_cost import ForcedRouter
from turnout.bench.cases import Case
from turnout.bench.layers import build_block, layer_call
from turnout.bench.rows import Row, provenance
from turnout.bench.timing import wait
from turnout.errors import ConfigError
from turnout.layers import RoutedMixer
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.routers.mode import RoutingMode
from turnout.tasks import Batch
from turnout.train.config import OptimConfig
from turnout.train.schedule import Joint
from turnout.train.step import Stepper
from turnout.train.throughput import Throughput


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainCase:
    """Size of a step: `batch` sequences of `length` random tokens below `vocab`, a fraction `usage` of gates open."""

    length: int = 1024
    batch: int = 32
    vocab: int = 50304
    usage: float = 0.25
    steps: int = 10

    def __post_init__(self) -> None:
        if min(self.length, self.batch, self.vocab, self.steps) < 1 or not 0 < self.usage <= 1:
            raise ConfigError(f"{self}; expected counts >= 1 and 0 < usage <= 1")


def measure_training(
    name: str, model: ModelConfig, optim: OptimConfig, case: TrainCase, *, device: torch.device, calls: int = 5
) -> Row:
    """One row: milliseconds of an optimisation step, tokens a second, and utilisation by conditional operations.

    A routed model's gates are drawn at `usage`, its own router paid for; rows are skipped with a static capacity of
    twice the expected count.
    """
    lm = CausalLM(model, vocab=case.vocab).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    for block in lm.blocks:
        if isinstance(block.mixer, RoutedMixer):
            drawn = torch.rand(case.batch, case.length, model.routing_groups, device=device, generator=generator)
            block.mixer.router = ForcedRouter(block.mixer.router, drawn < case.usage)  # type: ignore[assignment]
    stepper = Stepper(lm, optim, generator=generator)
    capacity = min(case.length, 2 ** (round(1.25 * case.usage * case.length) - 1).bit_length())
    mode = RoutingMode(capacity=capacity, sample=True, generator=generator)
    batch = _random_batch(case, device, generator)
    schedule = Joint.idle()
    began = time.perf_counter()
    for _ in range(5):
        stepper.step([batch], schedule, mode, optim.lr)
    wait(device)
    warm_up = time.perf_counter() - began
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        for _ in range(case.steps):
            stepper.step([batch], schedule, mode, optim.lr)
        wait(device)
        times.append(1e3 * (time.perf_counter() - began) / case.steps)
    times.sort()
    ms = times[len(times) // 2]
    pace = 1e3 * case.batch * case.length / ms
    shares = [case.usage] * model.layer_kinds.count("R")
    counted = Throughput(lm, device).record(pace, case.length, shares, skipping=True)
    seen = stepper.read()
    size = {**asdict(case), "layers": model.layers, "width": model.width, "layout": model.layout, "local": model.local}
    return {
        "kind": "train", "case": size, "arm": name, "status": "ok", "reason": "", "ms": ms, "ms_p20": times[0],
        "ms_p80": times[-1], "n_calls": calls * case.steps, "tokens_per_s": pace, **counted, "warm_up_s": warm_up,
        "params": sum(p.numel() for p in lm.parameters()), "optim": asdict(optim), "loss": seen["task_loss"],
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None, **provenance(device),
    }  # fmt: skip


def measure_block(case: Case, *, device: torch.device, compiled: bool = True, seconds: float = 1.0) -> list[Row]:
    """A block's training step (forward, backward to input and weights), dense by each backend beside routed.

    Both are compiled alike: what is compared is attention and what surrounds it, not who fuses the norms.
    """
    generator = generator_of(case, device)
    x = torch.randn(
        case.batch, case.n, case.width, device=device, dtype=getattr(torch, case.dtype), generator=generator
    )
    order = torch.rand(case.batch, case.n, 1, device=device, generator=generator).argsort(1).argsort(1)
    blocks = {kind: build_block(case, kind, device) for kind in "AR"}
    mixer = blocks["R"].mixer
    assert isinstance(mixer, RoutedMixer)
    mixer.router = ForcedRouter(mixer.router, order < case.rows)  # type: ignore[assignment]
    mode = RoutingMode(capacity=case.rows if device.type == "cuda" else None)
    arms: dict[str, Arm] = {}
    for backend in ("flash", "cudnn") if device.type == "cuda" else ("",):
        call = pinned(backend, layer_call(blocks["A"], x, RoutingMode(), case))
        # The backend is chosen while a block is traced, so that each arm needs code of its own.
        call = _traced_anew(call) if compiled else call
        arms[f"dense:{backend or 'sdpa'}"] = Arm(call=call, flops=_flops(blocks["A"], case, 1.0), n_bytes=0.0)
    for block in blocks.values():
        if compiled:
            block.compile(dynamic=False)
    routed = layer_call(blocks["R"], x, mode, case)
    routed = _traced_anew(routed) if compiled else routed
    arms["routed:auto"] = Arm(call=routed, flops=_flops(blocks["R"], case, case.rows / case.n), n_bytes=0.0)
    extra = {"compiled": compiled}
    return add_ratios(measure_arms("block", case, arms, device=device, seconds=seconds, extra=extra))


def _traced_anew(call: Callable[[], object]) -> Callable[[], object]:
    """`call`, which forgets all compiled code the first time that it runs."""
    first = True

    def run() -> object:
        nonlocal first
        if first:
            torch._dynamo.reset()
        first = False
        return call()

    return run


def block_cases(usage: float = 0.25) -> list[Case]:
    """E = 1,024, 16 heads, 65,536 tokens at 2K, 8K and 32K."""
    base = Case(n=2048, p=usage, batch=32, heads=16, kv_heads=16, dim=64, part="block", step="forward+backward")
    return [replace(base, n=n, batch=65536 // n) for n in (2048, 8192, 32768)]


def _flops(block: Any, case: Case, usage: float) -> float:
    return 3.0 * case.batch * block.flops(case.n, usage)


def _random_batch(case: TrainCase, device: torch.device, generator: torch.Generator) -> Batch:
    tokens = torch.randint(case.vocab, (case.batch, case.length + 1), device=device, generator=generator)
    at = torch.arange(case.length, device=device).repeat(case.batch, 1)
    hint = torch.zeros(at.shape, dtype=torch.bool, device=device)
    return Batch(tokens=tokens[:, :-1].contiguous(), at=at, targets=tokens[:, 1:].contiguous(), hint=hint, slices={})
