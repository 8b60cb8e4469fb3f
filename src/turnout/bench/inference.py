"""The inference bill: time to first token, time a token, key/value bytes, memory and energy of whole models.

B sequences, N tokens of context, L layers, G kv heads, D head dim, p fraction of (token, layer) slots that attend.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from turnout.bench.power import PowerMeter
from turnout.bench.rows import Row, provenance
from turnout.bench.timing import wait
from turnout.errors import ConfigError, UnsupportedError
from turnout.layers import MixerState, RoutedMixer
from turnout.layers.local.window import WindowTrack
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig, hybrid_layout
from turnout.models.decode_step import DecodeStep
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.query import QueryRouter, Route

ARMS = ("dense", "static_hybrid", "routed")
# Measured when asked for: the recipe's local track in every layer.
LOCAL = "local"
# Tokens of a whole answer, in the rows that add the prompt and the answer up.
ANSWER = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """One measurement.

    Args:
        context: tokens N in the cache when decoding starts.
        batch: sequences B.
        usage: p of the routed arm; the static hybrid has round(p·L) attention layers, at least one.
        steps: tokens decoded in one timed call.
        seconds: of decoding, for each arm.
        compiled: the steps of all arms run as compiled blocks (GPU only).
    """

    context: int
    batch: int
    usage: float = 0.1
    steps: int = 16
    seconds: float = 1.0
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.context < 1 or self.batch < 1 or self.steps < 1 or not 0 < self.usage <= 1 or not self.seconds >= 0:
            raise ConfigError(
                f"context={self.context}, batch={self.batch}, steps={self.steps}, usage={self.usage}, "
                f"seconds={self.seconds}; expected counts >= 1, 0 < usage <= 1, seconds >= 0"
            )


class DrawnRouter(nn.Module):
    """Runs a real router (its cost is the point), then opens gates drawn beforehand, a fraction p of all places.

    Its memory is the position, on the device, so that one CUDA graph is every step.
    """

    taken: Tensor

    def __init__(self, inner: QueryRouter, taken: Tensor) -> None:
        super().__init__()
        self.inner, self.context, self.causal = inner, inner.context, inner.causal
        self.register_buffer("taken", taken, persistent=False)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return self.inner.init_state(batch, device=device, dtype=dtype), torch.zeros(
            1, dtype=torch.int64, device=device
        )

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        inner, start = (None, None) if state is None else state
        route, inner = self.inner(x, mode=mode, state=inner, hint=hint)
        place = torch.arange(x.shape[1], device=x.device)
        place = place if start is None else place + start
        taken = self.taken.index_select(1, place)
        weight = taken.to(route.gate.dtype)
        after = None if start is None else start + x.shape[1]
        return Route(gate=route.gate, weight=weight, taken=taken), None if state is None else (inner, after)


def build_arm(config: ModelConfig, arm: str, bill: Bill, *, vocab: int, device: torch.device) -> CausalLM:
    """A model with fresh weights: bfloat16 on a GPU, float32 on a CPU."""
    if arm == "dense":
        config = replace(config, layout="A")
    elif arm == "static_hybrid":
        config = replace(config, layout=hybrid_layout(config.layers, bill.usage))
    elif arm == LOCAL:
        config = replace(config, layout="L")
    else:
        config = replace(config, layout="R")
    with torch.device(device):
        model = CausalLM(config, vocab=vocab)
    model = model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(bill.context)
    length = bill.context + _room(bill)
    for block in model.blocks:
        if isinstance(block.mixer, RoutedMixer):
            drawn = torch.rand(bill.batch, length, config.routing_groups, device=device, generator=generator)
            block.mixer.router = DrawnRouter(block.mixer.router, drawn < bill.usage)  # type: ignore[assignment]
    return model


def measure_bill(
    config: ModelConfig, bill: Bill, *, vocab: int, device: torch.device, arms: tuple[str, ...] = ARMS
) -> Iterator[Row]:
    """A row for each arm's prompt ("prefill") and each arm's steps ("decode"); `ms` is of one call, of one step.

    Arms run one after another, each alone in memory. `kv_bytes` is what attention reads of keys and values in one
    step; `joule_per_token` and `peak_bytes` are null where the device does not report them.
    """
    for arm in arms:
        try:
            yield from _measure_arm(config, arm, bill, vocab, device)
        except (torch.OutOfMemoryError, UnsupportedError) as error:
            reason = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
            yield _row(config, arm, "decode", bill, device, {"status": "unsupported", "reason": reason})
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _measure_arm(config: ModelConfig, arm: str, bill: Bill, vocab: int, device: torch.device) -> Iterator[Row]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = build_arm(config, arm, bill, vocab=vocab, device=device)
    generator = torch.Generator(device).manual_seed(0)
    tokens = torch.randint(vocab, (bill.batch, bill.context), device=device, generator=generator)
    state = model.init_state(bill.batch, bill.context + _room(bill))
    fresh = [(memory.local, memory.router) for memory in state]
    samples = [_prefill_ms(model, tokens, state, fresh, device) for _ in range(4)]
    # The first call loads kernels and warms up the allocator.
    prefill = _quantiles(samples[1:])
    params = sum(p.numel() for p in model.parameters())
    yield _row(config, arm, "prefill", bill, device, {**prefill, "params": params, "peak_bytes": _peak(device)})
    step = DecodeStep(model, state, compiler="inductor" if bill.compiled else None)
    times, watts = _decode_ms(step, bill, device)
    step.close()
    decode = _quantiles(times)
    shares = _shares(model, bill)
    size = model.embed.weight.element_size()
    read = config.n_kv_heads * (config.width // config.heads) * bill.context * sum(shares)
    kv = 2.0 * bill.batch * size * (read + _windows(model, bill.context))
    total = prefill["ms"] + ANSWER * decode["ms"]
    yield _row(
        config, arm, "decode", bill, device,
        {
            **decode, "params": params, "peak_bytes": _peak(device), "kv_bytes": kv,
            "usage": sum(shares) / len(shares), "tokens_per_s": 1e3 * bill.batch / decode["ms"],
            "ttft_ms": prefill["ms"], "answer": ANSWER, "answer_tokens_per_s": 1e3 * bill.batch * ANSWER / total,
            "joule_per_token": None if watts is None else watts * decode["ms"] / 1e3 / bill.batch, "watts": watts,
        },
    )  # fmt: skip


def _prefill_ms(
    model: CausalLM, tokens: Tensor, state: list[MixerState], fresh: list[tuple[Any, Any]], device: torch.device
) -> float:
    """Milliseconds from the prompt to the logits behind it, cache included; the state is then behind the prompt."""
    for memory, (local, router) in zip(state, fresh, strict=True):
        memory.local, memory.router = local, router
        if memory.cache is not None:
            memory.cache.length = 0
    last = torch.full((tokens.shape[0], 1), tokens.shape[1] - 1, device=device)
    wait(device)
    began = time.perf_counter()
    with torch.no_grad():
        model(tokens, mode=SKIP, state=state, at=last)
    wait(device)
    return 1e3 * (time.perf_counter() - began)


def _decode_ms(step: DecodeStep, bill: Bill, device: torch.device) -> tuple[list[float], float | None]:
    """Milliseconds a token of each call of `steps` tokens, and the mean power meanwhile.

    Every call starts from the same place, so that the context is what the row says.
    """
    start = step.position.clone()
    host = [cache.length for cache in step.caches]
    token = torch.zeros_like(step.tokens)
    times: list[float] = []
    _burst(step, token, 2)
    began = time.perf_counter()
    with PowerMeter(device) as meter:
        while len(times) < 3 or time.perf_counter() - began < bill.seconds:
            step.position.copy_(start)
            for cache, length in zip(step.caches, host, strict=True):
                cache.length = length
            _rewind_routers(step, start)
            wait(device)
            call = time.perf_counter()
            _burst(step, token, bill.steps)
            wait(device)
            times.append(1e3 * (time.perf_counter() - call) / bill.steps)
    return times, meter.watts


def _burst(step: DecodeStep, token: Tensor, count: int) -> None:
    for _ in range(count):
        # The next token is chosen on the device, as greedy generation does it.
        token = step(token).logits[:, -1].argmax(-1, keepdim=True)


def _rewind_routers(step: DecodeStep, start: Tensor) -> None:
    for memory in step.state:
        if isinstance(memory.router, tuple) and isinstance(memory.router[1], Tensor):
            memory.router[1].copy_(start)


def _room(bill: Bill) -> int:
    """Places behind the context: those of a call, and of the trial steps of a capture."""
    return bill.steps + 4


def _shares(model: CausalLM, bill: Bill) -> list[float]:
    """Fraction of the sequences whose keys a step reads, by layer: what was drawn, averaged over the timed steps."""
    shares = []
    for kind, block in zip(model.config.layer_kinds, model.blocks, strict=True):
        router = getattr(block.mixer, "router", None)
        if isinstance(router, DrawnRouter):
            shares.append(float(router.taken[:, bill.context : bill.context + bill.steps].float().mean()))
        else:
            shares.append(1.0 if kind == "A" else 0.0)
    return shares


def _windows(model: CausalLM, context: int) -> int:
    """Numbers of keys that the windows of a model read in one step of one sequence."""
    tracks = [track for track in model.modules() if isinstance(track, WindowTrack)]
    return sum(min(track.size, context) * track.width for track in tracks)


def _row(config: ModelConfig, arm: str, what: str, bill: Bill, device: torch.device, numbers: dict[str, Any]) -> Row:
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    shape = {name: getattr(config, name) for name in ("layers", "width", "heads")} | {"kv_heads": config.n_kv_heads}
    case = {"what": what, **shape, "local": config.local, "dtype": dtype, **asdict(bill)}
    empty: dict[str, Any] = {"status": "ok", "reason": "", "ms": None, "ms_p20": None, "ms_p80": None, "n_calls": 0}
    return {"kind": "inference", "case": case, "arm": arm, **empty, **numbers, **provenance(device)}


def _quantiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    n = len(ordered)
    return {"ms": ordered[n // 2], "ms_p20": ordered[n // 5], "ms_p80": ordered[min(n - 1, 4 * n // 5)], "n_calls": n}


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None
