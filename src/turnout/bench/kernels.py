"""Rows of the operator alone: gate → compaction → routed attention, against dense attention in the same run.

B batch, N tokens, R rows, H query heads, G kv heads, D head dim, E = H · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turnout.bench.arms import Arm, add_ratios, dtype_of, generator_of, measure_arms, pinned, unsupported
from turnout.bench.cases import Case
from turnout.bench.floors import least_bytes, useful_flops
from turnout.bench.rows import Row
from turnout.bench.self_check import check_attend
from turnout.errors import TurnoutError
from turnout.ops import attend, compact
from turnout.ops.gate import linear_gate

GPU_CASES = ((2048, 1 / 16, 16), (8192, 1 / 8, 4), (16384, 1 / 16, 2), (65536, 1 / 256, 1))
CPU_CASES = ((512, 1 / 16, 1), (2048, 1 / 64, 1), (2048, 1 / 4, 1))


def default_case(device: torch.device, **changes: object) -> Case:
    """The published shape on a GPU (16 heads of 128, bfloat16), the small one of the tests on a CPU."""
    small = {"heads": 4, "kv_heads": 4, "dim": 64, "dtype": "float32"} if device.type == "cpu" else {}
    return Case(**{"n": 2048, "p": 1 / 16, **small, **changes})  # type: ignore[arg-type]


def default_cases(device: torch.device) -> list[Case]:
    """A few sizes, forward and forward + backward."""
    sizes = CPU_CASES if device.type == "cpu" else GPU_CASES
    return [
        default_case(device, n=n, p=p, batch=batch, step=step)
        for n, p, batch in sizes
        for step in ("forward", "forward+backward")
    ]


def measure_kernel(
    case: Case,
    *,
    device: torch.device,
    impls: Sequence[str] | None = None,
    seconds: float = 1.0,
    flex: bool = False,
    router: bool = True,
    profiles: bool = False,
) -> list[Row]:
    """Dense arms (on a GPU pinned to flash and to cuDNN) and one routed arm for each `impl`.

    The gate logits are given; threshold, compaction and attention are timed. The arm `router+IMPL` also computes them,
    with one linear router that reads [B, N, E]. Data and routes are random, exactly round(p·N) rows a sequence.
    """
    impls = impls or (("triton", "auto") if device.type == "cuda" else ("auto",))
    generator, dtype = generator_of(case, device), dtype_of(case)

    def randn(n_rows: int, heads: int) -> Tensor:
        shape = (case.batch, n_rows, heads, case.dim)
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    k, v = randn(case.n, case.kv_heads), randn(case.n, case.kv_heads)
    arms: dict[str, Arm] = {}
    rows: list[Row] = []
    flops, n_bytes = useful_flops(case, 1.0), least_bytes(case, 1.0)
    for backend in ("flash", "cudnn") if device.type == "cuda" else ("",):
        call = pinned(backend, attention_call(dense_attention, (randn(case.n, case.heads), k, v), case))
        arms[f"dense:{backend or 'sdpa'}"] = Arm(call=call, flops=flops, n_bytes=n_bytes)
    order = torch.rand(case.batch, case.n, 1, device=device, generator=generator).argsort(1).argsort(1)
    logit = torch.where(order < case.rows, 1.0, -1.0)
    x, weight = _router_input(logit, case, dtype, generator)
    q = randn(case.rows, case.heads)
    for impl in impls:
        try:
            wrong = check_attend(case, impl, device)
        except (TurnoutError, RuntimeError) as error:
            rows.append(unsupported("kernel", case, f"routed:{impl}", str(error).split("\n")[0][:300], device))
            continue

        def routed(q: Tensor, k: Tensor, v: Tensor, impl: str = impl) -> Tensor:
            return attend(q, k, v, rows=compact(logit > 0, case.rows).rows, impl=impl)

        def with_router(q: Tensor, k: Tensor, v: Tensor, impl: str = impl) -> Tensor:
            return attend(q, k, v, rows=compact(linear_gate(x, weight) > 0, case.rows).rows, impl=impl)

        both = ((f"routed:{impl}", routed), (f"router+{impl}", with_router))
        for name, function in both if router else both[:1]:
            arms[name] = Arm(
                call=attention_call(function, (q, k, v), case),
                flops=useful_flops(case),
                n_bytes=least_bytes(case),
                wrong=wrong,
            )
    if flex:
        arms["routed:flex"] = _flex_arm(case, q, k, v, logit)
    return add_ratios(measure_arms("kernel", case, arms, device=device, seconds=seconds, profiles=profiles) + rows)


def _router_input(logit: Tensor, case: Case, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random x [B, N, E] and w [1, E] whose product has the sign of `logit`, so that p is what the case says."""
    x, w = (
        torch.randn(*shape, case.width, device=logit.device, dtype=dtype, generator=generator)
        for shape in ((case.batch, case.n), (1,))
    )
    length = w.float().norm()
    wanted = 3 * length * logit.to(dtype) - x @ w.T
    return x.addcmul_(wanted, w / length.square().to(dtype)), w


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    )


def attention_call(function: Callable[..., Tensor], inputs: Sequence[Tensor], case: Case) -> Callable[[], object]:
    """The function's forward, or forward and gradients of all inputs."""
    if case.step == "forward":

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    cotangent: list[Tensor] = []

    def both() -> object:
        out = function(*leaves)
        if not cotangent:
            cotangent.append(torch.randn_like(out))
        return torch.autograd.grad(out, leaves, cotangent[0])

    return both


def _flex_arm(case: Case, q: Tensor, k: Tensor, v: Tensor, logit: Tensor) -> Arm:
    """Gathered rows through compiled FlexAttention: what a user can build from parts; its block mask is not timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows = compact(logit > 0, case.rows).rows[:, 0]

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= rows[b, i]

    mask = create_block_mask(visible, case.batch, None, case.rows, case.n, device=str(q.device))
    compiled = torch.compile(flex_attention, dynamic=False)

    def gathered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=case.heads != case.kv_heads)

    return Arm(call=attention_call(gathered, (q, k, v), case), flops=useful_flops(case), n_bytes=least_bytes(case))
