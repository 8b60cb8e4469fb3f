"""Rows of patterns: windows, decay, dilation, chosen keys, against dense attention and FlexAttention.

B batch, N tokens, H query heads, G kv heads, D head dim, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from turnout.bench.arms import Arm, add_ratios, dtype_of, generator_of, measure_arms, pinned, unsupported
from turnout.bench.cases import Case
from turnout.bench.floors import least_bytes, useful_flops
from turnout.bench.kernels import attention_call, dense_attention
from turnout.bench.rows import Row
from turnout.bench.self_check import LENGTH, compare
from turnout.errors import TurnoutError
from turnout.layers.reading import read
from turnout.routers.mode import SKIP
from turnout.routers.pattern import PATTERNS, Pattern, PatternContext, Reach

GPU_CASES = ((4096, 4), (16384, 1), (65536, 1))
CPU_CASES = ((512, 1),)


def default_cases(device: torch.device) -> list[Case]:
    """All rows attend: 4K to 64K on a GPU, forward and forward + backward."""
    small = {"heads": 4, "kv_heads": 4, "dim": 64, "dtype": "float32"} if device.type == "cpu" else {}
    sizes = CPU_CASES if device.type == "cpu" else GPU_CASES
    steps = ("forward", "forward+backward")
    return [Case(n=n, p=1.0, batch=b, step=step, **small) for n, b in sizes for step in steps]  # type: ignore[arg-type]


def default_specs(n: int) -> tuple[str, ...]:
    """Patterns at one length: windows of a sixteenth, segments that double four times as they thin out."""
    w = max(16, n // 16)
    return (
        f"window:size={w}",
        f"sinks:size={w},sinks=4",
        "alibi",
        "alibi:prune=0.0001,cap=11.3",
        "forget:gate=fixed,shortest=4,longest=64,prune=0.0001,cap=11.3",
        f"dilated:branches=({w}/1+{4 * w}/4+{16 * w}/16)",
        f"strided:block=64,near={max(1, w // 128)},stride=16",
        *selectors(n),
    )


def selectors(n: int) -> tuple[str, ...]:
    """Patterns that choose keys by content, and a lot beside them: 256 keys a row, or fewer in short sequences.

    Blocks of 64 keys, a row's own among them, chosen by each row (top_blocks) or for all rows of a block; or half of
    the keys in a window and 16 or 8 chosen one by one beside it.
    """
    b, w = (64, 128) if n >= 1024 else (16, 32)
    return (
        f"random_blocks:block={b},keep=2,near=1,share={b}",
        f"low_rank:block={b},keep=2,near=1,rank=8,share={b}",
        f"top_blocks:block={b},keep=2,near=1",
        f"last_match:size={w},ngram=4,matches=4,follow=4",
        f"buckets:size={w},keep=4,tables=2,buckets=64" if n >= 1024 else f"buckets:size={w},keep=4,tables=2",
    )


def measure_patterns(
    case: Case, *, device: torch.device, specs: Sequence[str] | None = None, seconds: float = 1.0, flex: bool = False
) -> list[Row]:
    """Dense arms (on a GPU pinned to flash and to cuDNN), one arm for each pattern, and compiled FlexAttention twice.

    An arm takes q, k, v and what the pattern decides, which is part of the timed call. Pruned arms are timed on random
    data, whose norms lie around their cap.
    """
    generator, dtype = generator_of(case, device), dtype_of(case)

    def randn(heads: int) -> Tensor:
        shape = (case.batch, case.n, heads, case.dim)
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    inputs = randn(case.heads), randn(case.kv_heads), randn(case.kv_heads)
    flops, n_bytes = useful_flops(case), least_bytes(case)
    arms: dict[str, Arm] = {}
    rows: list[Row] = []
    for backend in ("flash", "cudnn") if device.type == "cuda" else ("",):
        call = pinned(backend, attention_call(dense_attention, inputs, case))
        arms[f"dense:{backend or 'sdpa'}"] = Arm(call=call, flops=flops, n_bytes=n_bytes)
    for spec in specs or default_specs(case.n):
        name = f"pattern:{spec}"
        try:
            pattern = build(spec, case).to(device)
            wrong = check_pattern(spec, case, device)
        except (TurnoutError, RuntimeError) as error:
            rows.append(unsupported("pattern", case, name, str(error).split("\n")[0][:300], device))
            continue
        share = pattern.mean_keys(case.n) / ((case.n + 1) / 2)
        call = attention_call(_reading(pattern, case, device), inputs, case)
        arms[name] = Arm(call=call, flops=flops * share, n_bytes=n_bytes, wrong=wrong)
    if flex:
        arms |= _flex_arms(case, inputs)
    return add_ratios(measure_arms("pattern", case, arms, device=device, seconds=seconds) + rows)


def build(spec: str, case: Case) -> Pattern:
    """The pattern of a layer of the case's shape."""
    context = PatternContext(width=case.width, heads=case.heads, kv_heads=case.kv_heads, head_dim=case.dim)
    pattern: Pattern = PATTERNS.build(spec, context=context).eval()
    return pattern


def reach_of(pattern: Pattern, x: Tensor, tokens: Tensor) -> Reach:
    """What a pattern decides about the inputs [B, N, E] of random tokens [B, N]."""
    at = torch.arange(x.shape[1], device=x.device)
    return pattern.reach(x, at=at, length=x.shape[1], state=None, mode=replace(SKIP, tokens=tokens))


def seen_by(pattern: Pattern, case: Case, batch: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs [B, N, E], of width 1 where nothing projects them, and tokens [B, N] of a vocabulary of bytes."""
    source = torch.Generator(device).manual_seed(1)
    width = case.width if any(True for _ in pattern.parameters()) else 1
    x = torch.randn(batch, length, width, device=device, generator=source)
    return x, torch.randint(256, (batch, length), device=device, generator=source)


def _reading(pattern: Pattern, case: Case, device: torch.device) -> Callable[..., Tensor]:
    x, tokens = seen_by(pattern, case, case.batch, case.n, device)
    x = x.to(dtype_of(case))
    pattern = pattern.to(x.dtype)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return read(q, k, v, reach_of(pattern, x, tokens))

    return call


def check_pattern(spec: str, case: Case, device: torch.device) -> str:
    """ "" where the pattern is as exact as its reference in the case's dtype, with gradients; else what is wrong."""
    pattern = build(spec.replace(str(max(64, case.n // 16)), "64"), case).to(device)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(2, LENGTH, heads, case.dim) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    inputs = [torch.randn(s, device=device, dtype=torch.float64, generator=generator) for s in shapes]

    x, tokens = seen_by(pattern, case, 2, LENGTH, device)
    # A list of rows that happens to hold all of them takes the way with explicit masks where there is no kernel.
    listed = torch.arange(LENGTH, device=device).expand(2, -1)

    def run(impl: str) -> Callable[..., list[Tensor]]:
        rows = listed if impl == "reference" else None

        def call(*given: Tensor) -> list[Tensor]:
            reach = reach_of(pattern.to(given[0].dtype), x.to(given[0].dtype), tokens)
            if case.step == "forward":
                return [read(given[0], given[1], given[2], reach, rows=rows, impl=impl)]
            q, k, v = (tensor.clone().requires_grad_() for tensor in given)
            with torch.enable_grad():
                out = read(q, k, v, reach, rows=rows, impl=impl)
                pull = torch.nn.functional.normalize(torch.ones_like(out), dim=-1)
                return [out.detach(), *torch.autograd.grad(out, (q, k, v), pull)]

        return call

    reduction = 2 * LENGTH * case.dim * (1 if case.step == "forward" else case.heads // case.kv_heads)
    return compare(run("auto"), run("reference"), inputs, dtype_of(case), reduction)


def _flex_arms(case: Case, inputs: Sequence[Tensor]) -> dict[str, Arm]:
    """A window and ALiBi through compiled FlexAttention, their block masks not timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, w = inputs[0].device, max(16, case.n // 16)
    slopes = 2.0 ** (-8 * (torch.arange(case.heads, device=device) + 1) / case.heads)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    # Uncompiled it holds every pair: 32 GiB at 65,536 tokens.
    masked: Any = torch.compile(create_block_mask, dynamic=False) if case.n > 2**15 else create_block_mask

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (j > i - w)

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= i

    def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[h] * (i - j)

    def arm(visible: Callable[..., Tensor], score_mod: Callable[..., Tensor] | None, share: float) -> Arm:
        mask = masked(visible, None, None, case.n, case.n, device=str(device))

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
            gqa = case.heads != case.kv_heads
            out: Tensor = compiled(q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=gqa)
            return out.transpose(1, 2)

        flops, n_bytes = useful_flops(case) * share, least_bytes(case)
        return Arm(call=attention_call(call, inputs, case), flops=flops, n_bytes=n_bytes)

    share = build(f"window:size={w}", case).mean_keys(case.n) / ((case.n + 1) / 2)
    return {f"flex:window:size={w}": arm(near, None, share), "flex:alibi": arm(causal, alibi, 1.0)}
