"""RA5: milliseconds and counted operations of one whole block, router included, by sequence length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from turnout.bench.timing import graphed, time_interleaved
from turnout.layers import RoutedMixer
from turnout.models.block import Block
from turnout.models.config import ModelConfig, RoutingConfig
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QueryRouter, Route
from turnout.train.manifest import device_name

NARROW = ModelConfig(layers=1, width=128, heads=4, local="conv:kernel=64,form=softmax")
WIDE = ModelConfig(layers=1, width=1024, heads=16, local="conv:kernel=4,project=false", positions="rope", form="llama")
TEXT = ModelConfig(
    layers=1, width=256, heads=8, local="conv:kernel=16,project=false", positions="rope", form="llama",
    routing=RoutingConfig(mix="add"),
)  # fmt: skip
LENGTHS = {"cuda": (128, 512, 2048, 8192, 32768), "cpu": (128, 512, 1024, 2048, 8192)}
TEXT_LENGTHS = (512, 2048, 8192)
FRACTIONS = {"a quarter": 4, "a sixth": 6}
TOKENS = {"cuda": 65536, "cpu": 8192}


class ForcedRouter(nn.Module):
    """Runs a real router (its cost is the point), then takes a given set of rows instead of its decision.

    Args:
        inner: the router that is paid for.
        taken: bool [B, T, G].
    """

    def __init__(self, inner: QueryRouter, taken: Tensor) -> None:
        super().__init__()
        self.inner, self.taken = inner, taken

    def forward(self, x: Tensor, **context: Any) -> tuple[Route, Any]:
        route, state = self.inner(x, **context)
        weight = self.taken.to(route.gate.dtype) + route.gate - route.gate.detach()
        return Route(gate=route.gate, weight=weight * self.taken, taken=self.taken), state


def measure(device: str) -> dict[str, Any]:
    """Rows for the published size (float32) and, on a GPU in bfloat16, a production size and that of `text_gpu`.

    Arms: attention (SDPA by the dispatcher; on a GPU in bfloat16 also pinned to flash and to cuDNN), local track,
    routed with one gate a sequence, a sixth and a quarter of the rows, for the published EMA router and the linear
    router. The static hybrid of one attention layer in four is the mean of one attention and three local blocks.
    """
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    where = torch.device(kind)
    rows: list[dict[str, Any]] = []
    sizes: list[tuple[str, ModelConfig, torch.dtype, tuple[int, ...]]] = [
        ("published", NARROW, torch.float32, LENGTHS[kind])
    ]
    if kind == "cuda":
        sizes += [("wide", WIDE, torch.bfloat16, LENGTHS[kind]), ("text", TEXT, torch.bfloat16, TEXT_LENGTHS)]
    for size, config, dtype, lengths in sizes:
        for length in lengths:
            rows += _measure_length(size, config, dtype, length, where)
    return {"device_name": device_name(where), "device": kind, "threads": torch.get_num_threads(), "rows": rows}


def _measure_length(
    size: str, config: ModelConfig, dtype: torch.dtype, length: int, device: torch.device
) -> list[dict[str, Any]]:
    batch = max(1, TOKENS[device.type] // length)
    generator = torch.Generator(device).manual_seed(length)
    x = torch.randn(batch, length, config.width, device=device, dtype=dtype, generator=generator)
    arms = _arms(config, dtype, batch, length, device, generator)
    rows = []
    for what in ("forward", "forward+backward"):
        calls = {
            name: graphed(_call(block, x, mode, backend, what), device)
            for name, (block, mode, backend, _) in arms.items()
        }
        timings = time_interleaved(calls, device=device, seconds=0.3 if device.type == "cuda" else 1.5, most=60)
        for name, timing in timings.items():
            block, _, _, usage = arms[name]
            flops = batch * block.flops(length, usage) * (1 if what == "forward" else 3)
            rows.append(
                {"size": size, "what": what, "arm": name, "length": length, "batch": batch, "usage": usage,
                 "ms": timing.ms, "ms_p20": timing.ms_p20, "ms_p80": timing.ms_p80, "n": timing.n, "flops": flops}
            )  # fmt: skip
    return rows


def _arms(
    config: ModelConfig, dtype: torch.dtype, batch: int, length: int, device: torch.device, generator: torch.Generator
) -> dict[str, tuple[Block, RoutingMode, SDPBackend | None, float]]:
    def block(layout: str, router: str = "linear") -> Block:
        routing = replace(config.routing, router=router)
        return Block(replace(config, layout=layout, routing=routing), 0, 0).to(device=device, dtype=dtype)

    plain = RoutingMode()
    attention = block("A")
    arms: dict[str, tuple[Block, RoutingMode, SDPBackend | None, float]] = {
        "attention": (attention, plain, None, 1.0),
        "local": (block("L"), plain, None, 0.0),
    }
    if dtype == torch.bfloat16:
        arms["attention (flash)"] = (attention, plain, SDPBackend.FLASH_ATTENTION, 1.0)
        arms["attention (cuDNN)"] = (attention, plain, SDPBackend.CUDNN_ATTENTION, 1.0)
    for router in ("ema", "linear"):
        for name, count in (("one gate", 1), *((name, length // part) for name, part in FRACTIONS.items())):
            taken = _random_rows(batch, length, count, device, generator)
            routed = block("R", router)
            if isinstance(routed.mixer, RoutedMixer):
                routed.mixer.router = ForcedRouter(routed.mixer.router, taken)  # type: ignore[assignment]
            mode = RoutingMode(capacity=count if device.type == "cuda" else None)
            arms[f"routed {router}, {name}"] = (routed, mode, None, count / length)
    return arms


def _random_rows(batch: int, length: int, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Bool [B, T, 1] with exactly `count` rows a sequence at random places."""
    order = torch.rand(batch, length, device=device, generator=generator).argsort(1)
    return (order < count)[..., None]


def _call(block: Block, x: Tensor, mode: RoutingMode, backend: SDPBackend | None, what: str) -> Callable[[], object]:
    def forward() -> Tensor:
        return block(x, mode=mode)[0]

    def call() -> None:
        # A context of this kind can be entered once only.
        with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
            if what == "forward":
                with torch.no_grad():
                    forward()
                return
            block.zero_grad(set_to_none=True)
            forward().square().mean().backward()

    return call
