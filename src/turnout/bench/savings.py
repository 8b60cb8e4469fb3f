"""What routing saves: the whole model, router included, against dense attention, static hybrid and local track."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from turnout.bench.power import LEAST_SECONDS, NOT_REPORTED, PowerMeter
from turnout.bench.timing import Timing, graphed, time_interleaved, wait
from turnout.layers.attention import AttentionTrack
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QueryRouter
from turnout.tasks import Batch, Task
from turnout.train.config import RunConfig
from turnout.train.manifest import device_name
from turnout.train.schedule import Joint
from turnout.train.step import Stepper

DECODED_TOKENS = 16


def measure_run(
    model: CausalLM, config: RunConfig, task: Task, summary: dict[str, Any], *, batch: int = 8, seconds: float = 2.0
) -> dict[str, Any]:
    """Milliseconds, tokens a second, bytes, energy and counted operations of train step, prefill and one-token decode.

    The routed arm is the trained model with its own decisions on the task's data; dense, static hybrid (attention in
    the layer that the router uses most) and local have the same shape and fresh weights. GPU train steps and prefills
    are CUDA graphs for every arm.

    `dense_phase` is the routed model's own train step with both tracks computed everywhere, as in explore.

    Returns:
        The content of savings.json. `flops` are multiply-adds × 2 of one call at the measured usage, `kv_bytes` what
        attention reads of keys and values for one decoded token: both counted. `joules` are of one call (of one token
        where decoding), None where `energy` says that the device reports none; `peak_bytes` is what the call and its
        preparation allocated beside the model (a cache; a train step's gradients and moments), None on a CPU.
    """
    device = model.embed.weight.device
    was_training = model.training
    length = task.length
    data = next(iter(task.eval_batches(1, batch, 2))).to(device)
    arms = build_arms(model, config, task.vocab, summary["usage_layers"])
    rows: list[dict[str, Any]] = []
    capacity = None
    if device.type == "cuda":
        capacity = min(length, 2 ** max(3, math.ceil(math.log2(max(1, 2 * (summary["most_rows"] or 1))))))
    for what, make in (("prefill", _prefill), ("decode", _decode), ("train_step", _train_step)):
        # Decoding reads single tokens of as few sequences as the router allows, behind the same context.
        item = _first(data, _least_batch(model)) if what == "decode" else data
        made = {name: _with_peak(make, arm, item, config, capacity) for name, arm in arms.items()}
        if what == "train_step" and "routed" in arms:
            made["dense_phase"] = _with_peak(partial(_train_step, skip=False), model, item, config, None)
        calls = {name: call for name, (call, _) in made.items()}
        timed = time_interleaved(calls, device=device, seconds=seconds)
        for name, timing in timed.items():
            usage = {"routed": summary["usage_layers"], "dense_phase": [1.0] * config.model.layers}.get(name)
            rows.append(
                _row(what, name, arms.get(name, model), item, timing, usage)
                | {"usage": summary["usage"] if name == "routed" else None, "peak_bytes": made[name][1]}
                | {"joules": _joules(calls[name], device, min(seconds, LEAST_SECONDS), _decoded(what, item))}
            )
    model.train(was_training)
    energy = PowerMeter(device).source
    return {"device": device_name(device), "threads": torch.get_num_threads(), "energy": energy, "rows": rows}


def _row(what: str, name: str, arm: CausalLM, item: Batch, timing: Timing, usage: list[float] | None) -> dict[str, Any]:
    n, length = item.tokens.shape
    tokens = _decoded(what, item)
    ms = timing.ms / tokens
    return {
        "what": what, "arm": name, "length": length, "batch": n,
        "ms": ms, "ms_p20": timing.ms_p20 / tokens, "ms_p80": timing.ms_p80 / tokens, "n": timing.n,
        "tokens_per_s": 1e3 * (n if what == "decode" else n * length) / ms,
        "flops": count_flops(arm, what, item, usage),
        "kv_bytes": count_kv_bytes(arm, item, usage) if what == "decode" else None,
    }  # fmt: skip


def _with_peak(
    make: Callable[..., Callable[[], object]], arm: CausalLM, item: Batch, config: RunConfig, capacity: int | None
) -> tuple[Callable[[], object], int | None]:
    """A call, warmed up once, and the most bytes that it and its preparation held at a time beside what was there."""
    device = arm.embed.weight.device
    if device.type != "cuda":
        return make(arm, item, config, capacity), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call = make(arm, item, config, capacity)
    call()
    return call, torch.cuda.max_memory_allocated(device) - before


def _joules(call: Callable[[], object], device: torch.device, seconds: float, tokens: int) -> float | None:
    """Energy of one of `tokens` parts of a call, from calls one behind the other for `seconds`."""
    meter = PowerMeter(device)
    if meter.source == NOT_REPORTED:
        return None
    calls = 0
    wait(device)
    with meter:
        began = time.perf_counter()
        while calls == 0 or time.perf_counter() - began < seconds:
            call()
            wait(device)
            calls += 1
    return None if meter.joules is None else meter.joules / calls / tokens


def build_arms(model: CausalLM, config: RunConfig, vocab: int, usage_layers: list[float]) -> dict[str, CausalLM]:
    """The model beside its dense, static-hybrid and local twins (fresh weights, same device and dtype)."""
    layers = config.model.layers
    routed = [i for i, kind in enumerate(config.model.layer_kinds) if kind == "R"]
    busiest = routed[max(range(len(routed)), key=lambda i: usage_layers[i])] if routed else 0
    hybrid = "".join("A" if i == busiest else "L" for i in range(layers))
    layouts = {"dense": "A", "static_hybrid": hybrid, "local": "L"}
    like = model.embed.weight
    arms = {
        name: CausalLM(replace(config.model, layout=layout), vocab=vocab, seed=config.seed).to(like)
        for name, layout in layouts.items()
    }
    own = "routed" if routed else "this"
    return {own: model, **arms}


def count_flops(model: CausalLM, what: str, batch: Batch, usage: list[float] | None) -> float:
    """Multiply-adds × 2 of one call: a decode step is the marginal cost of the last token; backward = 2 × forward."""
    n, length = batch.tokens.shape
    per_layer = _spread(model, usage)
    head = 2.0 * model.head.weight.numel()
    if what == "decode":
        return model.block_flops(length, per_layer) - model.block_flops(length - 1, per_layer) + head
    if what == "prefill":
        return n * (model.block_flops(length, per_layer) + head)
    return 3 * n * (model.block_flops(length, per_layer) + head * batch.at.shape[1])


def count_kv_bytes(model: CausalLM, batch: Batch, usage: list[float] | None) -> float:
    """Bytes of keys and values that attention reads for the last token of every sequence.

    Sum over layers of share · B · 2 · keys · G · D · bytes of a number; the share is 1 in a dense layer, the usage in a
    routed one (a token that stays local reads no keys) and 0 in a local one.
    """
    n, length = batch.tokens.shape
    total = 0.0
    for kind, block, routed in zip(model.config.layer_kinds, model.blocks, _spread(model, usage), strict=True):
        share = 1.0 if kind == "A" else routed
        for track in (module for module in block.modules() if isinstance(module, AttentionTrack)):
            total += share * n * 2 * _last_keys(track, length) * track.kv_heads * track.head_dim
    return total * model.embed.weight.element_size()


def _last_keys(track: AttentionTrack, length: int) -> float:
    """Keys that the last row of a sequence reads: those of all rows, less those of all rows but it."""
    pattern = track.pattern
    if pattern is None:
        return length
    before = (length - 1) * pattern.mean_keys(length - 1) if length > 1 else 0.0
    return length * pattern.mean_keys(length) - before


def _spread(model: CausalLM, usage: list[float] | None) -> list[float]:
    values = iter(usage or [])
    return [next(values, 0.0) if kind == "R" else 0.0 for kind in model.config.layer_kinds]


def _least_batch(model: CausalLM) -> int:
    return max((module.least_batch for module in model.modules() if isinstance(module, QueryRouter)), default=1)


def _first(batch: Batch, n: int) -> Batch:
    parts = {name: getattr(batch, name)[:n] for name in ("tokens", "at", "targets", "hint")}
    return Batch(**parts, slices={})


def _decoded(what: str, batch: Batch) -> int:
    """Tokens that one decode call reads one after another; at least one is left as context. Other calls are whole."""
    return max(1, min(DECODED_TOKENS, batch.tokens.shape[1] - 1)) if what == "decode" else 1


def _prefill(model: CausalLM, batch: Batch, config: RunConfig, capacity: int | None) -> Callable[[], object]:
    mode = RoutingMode(capacity=capacity)
    last = torch.full((batch.tokens.shape[0], 1), batch.tokens.shape[1] - 1, device=batch.tokens.device)

    model.eval()

    @torch.no_grad()
    def call() -> Tensor:
        return model(batch.tokens, mode=mode, at=last, hint=batch.hint).logits

    return graphed(call, batch.tokens.device)


def _decode(model: CausalLM, batch: Batch, config: RunConfig, capacity: int | None) -> Callable[[], object]:
    """Decode the last tokens of the sequence one by one behind a prefilled context."""
    mode = RoutingMode()
    split = batch.tokens.shape[1] - _decoded("decode", batch)
    model.eval()
    with torch.no_grad():
        state = model.init_state(batch.tokens.shape[0], batch.tokens.shape[1])
        model(batch.tokens[:, :split], mode=mode, state=state, hint=batch.hint[:, :split])
    prefilled = [(layer.local, layer.router) for layer in state]

    @torch.no_grad()
    def call() -> None:
        # Every call starts from the same memory; otherwise positions and decisions would drift from call to call.
        for layer, (local, router) in zip(state, prefilled, strict=True):
            layer.local, layer.router = local, router
            if layer.cache is not None:
                layer.cache.length = split
        for t in range(split, batch.tokens.shape[1]):
            model(batch.tokens[:, t : t + 1], mode=mode, state=state, hint=batch.hint[:, t : t + 1])

    return call


def _train_step(
    model: CausalLM, batch: Batch, config: RunConfig, capacity: int | None, *, skip: bool = True
) -> Callable[[], object]:
    """A whole optimisation step on a copy of the model, so that measuring trains nothing."""
    twin = CausalLM(model.config, vocab=model.vocab).to(model.embed.weight)
    twin.load_state_dict(model.state_dict())
    generator = torch.Generator(batch.tokens.device).manual_seed(0)
    stepper = Stepper(twin, config.optim, generator=generator)
    schedule = Joint.idle()
    mode = RoutingMode(skip=skip, capacity=capacity, sample=True, generator=generator)

    def call() -> None:
        # A step size of zero keeps the decisions where training left them.
        stepper.step([batch], schedule, mode, 0.0)

    for _ in range(4):
        call()
    return call
