"""What removing directions costs: attention without and with it, fused and unfused, and whole models of every arm.

B batch, T tokens, H heads, D head dim, K directions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from turnout.bench.profile import profiled
from turnout.bench.timing import graphed, time_interleaved
from turnout.models.causal_lm import CausalLM
from turnout.models.decode_step import DecodeStep
from turnout.ops.attend import attend
from turnout.ops.attend.reference import suppress_directions
from turnout.recipes.directional import ARMS, SIZES, directional_run
from turnout.routers.mode import RoutingMode
from turnout.tasks import Batch
from turnout.train.loop import pick_device
from turnout.train.manifest import device_name
from turnout.train.schedule import Joint
from turnout.train.step import Stepper

# (batch, tokens, heads, head dim): the published attention and the same tokens in fewer and longer sequences, where
# attention has more to do for each output that directions are removed from; heads of 64; that of the small size.
SHAPES = {
    "cuda": {
        "433m": (8, 1024, 12, 128), "433m, 4,096 tokens": (4, 4096, 12, 128),
        "433m, 16,384 tokens": (1, 16384, 12, 128), "heads of 64": (8, 1024, 16, 64), "gpu": (32, 512, 6, 64),
    },
    "cpu": {"cpu": (4, 128, 4, 16)},
}  # fmt: skip
DIRECTIONS = 4
# Calls of one graph: what lies between two of them is what lies between kernels anyway.
CALLS = {"forward": 10, "forward+backward": 4}
# What an arm keeps beside keys and values to decode.
CACHE = {
    "baseline": "compatible, nothing more is kept", "prefix": "compatible, with one running sum a layer",
    "sequence": "none: every new token changes all earlier outputs, keys and values, so the sequence is read again",
}  # fmt: skip


def measure_directions(device: str, *, seconds: float = 1.5) -> dict[str, Any]:
    """Milliseconds of attention with and without directions, and microseconds a token of every arm.

    Returns:
        {"attention": rows with "ms" by arm, "best", the fastest way with directions over the fastest without, on a GPU
        "epilogue", the kernel with directions over the kernel without, and a profile; "models": rows of text by arm,
        "device_name"}.
    """
    where = pick_device(device)
    attention = []
    for size, shape in SHAPES[where.type].items():
        for what in ("forward", "forward+backward"):
            attention.append({"size": size, "what": what, "shape": shape, **_attention(shape, what, where, seconds)})
    sizes = ("gpu", "433m") if where.type == "cuda" else ("cpu",)
    models = [measure_arm(size, arm, where, seconds / 3) for size in sizes for arm in ARMS]
    return {"attention": attention, "models": models, "device_name": device_name(where), "rows": attention}


def _attention(shape: tuple[int, int, int, int], what: str, device: torch.device, seconds: float) -> dict[str, Any]:
    n_batch, length, heads, dim = shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=dtype, generator=generator).requires_grad_(what != "forward")

    q, k, v = (randn(n_batch, length, heads, dim) for _ in range(3))
    d = torch.nn.functional.normalize(randn(heads, DIRECTIONS, dim).float(), dim=-1).to(dtype).detach()
    d.requires_grad_(what != "forward")
    r = randn(n_batch, length, heads, DIRECTIONS).detach().sigmoid().requires_grad_(what != "forward")
    cotangent = randn(n_batch, length, heads, dim).detach()
    arms: dict[str, Callable[[], Tensor]] = {"attention": lambda: attend(q, k, v)}
    arms["attention + cut"] = lambda: attend(q, k, v, directions=d, suppress=r, impl="dense")
    arms["attention + definition"] = lambda: suppress_directions(attend(q, k, v), d, r)
    if device.type == "cuda":
        arms["kernel"] = lambda: attend(q, k, v, impl="triton")
        arms["kernel + epilogue"] = lambda: attend(q, k, v, directions=d, suppress=r, impl="triton")

    def whole(arm: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        if what == "forward":
            return arm
        return lambda: torch.autograd.grad(arm(), inputs, cotangent)

    with torch.set_grad_enabled(what != "forward"):
        single = {name: whole(arm, (q, k, v, d, r) if "+" in name else (q, k, v)) for name, arm in arms.items()}
        calls = CALLS[what] if device.type == "cuda" else 1
        timings = time_interleaved(
            {name: graphed(_repeated(call, calls), device) for name, call in single.items()},
            device=device, seconds=seconds,
        )  # fmt: skip
        row = _compared({name: round(t.ms / calls, 5) for name, t in timings.items()}, timings["attention"].n * calls)
        if device.type == "cuda":
            row["profile"] = {name: profiled(single[name], device) for name in single if "definition" not in name}
    return row


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    def several() -> None:
        for _ in range(times):
            call()

    return several


def _compared(ms: dict[str, float], n: int) -> dict[str, Any]:
    """The fastest way with directions over the fastest without, and the kernel with its epilogue over the kernel."""
    row: dict[str, Any] = {"ms": ms, "n": n}
    row["best"] = min(t for name, t in ms.items() if "+" in name) / min(t for name, t in ms.items() if "+" not in name)
    if "kernel" in ms:
        row["epilogue"] = ms["kernel + epilogue"] / ms["kernel"]
    return row


def measure_arm(size: str, arm: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Train step, forward and decoding of one arm, with fresh weights; microseconds a token.

    On a GPU in bf16 and as graphs, so that launches are not what is timed.
    """
    config = directional_run(size, arm, "x")
    base = SIZES[size]
    optim = config.optim
    model = CausalLM(config.model, vocab=base.vocab).to(device)
    tokens = torch.randint(base.vocab, (base.batch, base.length), device=device)
    mode = RoutingMode(skip=False)

    @torch.no_grad()
    def forward() -> Tensor:
        bf16 = optim.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            return model(tokens, mode=mode).logits

    row: dict[str, Any] = {"arm": arm, "size": size, "cache": CACHE.get(arm, CACHE["baseline"])}
    row["forward"] = _microseconds(graphed(forward, device), device, seconds, tokens.numel())
    row["decode"] = _decoding(model, arm, device, seconds)
    at = torch.arange(base.length, device=device).repeat(base.batch, 1)
    batch = Batch(tokens=tokens, at=at, targets=tokens, hint=torch.zeros_like(at, dtype=torch.bool), slices={})
    stepper = Stepper(model, optim, generator=torch.Generator(device).manual_seed(0))

    def train() -> None:
        stepper.step([batch], Joint.idle(), mode, 0.0)

    for _ in range(4):
        train()
    row["train"] = _microseconds(train, device, seconds, tokens.numel())
    text = f"train {row['train']:.3f}, forward {row['forward']:.3f}, decode {row['decode']:.1f} us/token"
    return {**row, "text": text}


def _microseconds(call: Callable[[], object], device: torch.device, seconds: float, n_tokens: int) -> float:
    return 1e3 * time_interleaved({"": call}, device=device, seconds=seconds)[""].ms / n_tokens


def _decoding(model: CausalLM, arm: str, device: torch.device, seconds: float) -> float:
    """Microseconds of one more token of one sequence; the published router re-reads the whole sequence for it."""
    model = copy.deepcopy(model).eval()
    if device.type == "cuda":
        model = model.bfloat16()
    length = 128
    tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
    if arm == "sequence":

        @torch.no_grad()
        def again() -> Tensor:
            return model(tokens, mode=RoutingMode(skip=False)).logits

        return _microseconds(graphed(again, device), device, seconds, 1)
    most = 200
    with torch.no_grad():
        state = model.init_state(1, length + most + 16)
        model(tokens, state=state)
    step = DecodeStep(model, state)
    token = tokens[:, :1]
    timing = time_interleaved({"decode": lambda: step(token)}, device=device, seconds=seconds, most=most)
    return 1e3 * timing["decode"].ms
