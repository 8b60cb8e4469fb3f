"""Before a ratio is printed: does the implementation compute what the reference computes, on this device, today?

B batch, N tokens, R rows, H query heads, G kv heads, D head dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from turnout.bench.arms import dtype_of
from turnout.bench.cases import Case
from turnout.ops import attend, compact
from turnout.ops.attend.decode import decode_attend

# Odd, and more than one tile of any kernel.
LENGTH = 301


def check_attend(case: Case, impl: str, device: torch.device) -> str:
    """ "" when `attend(impl=...)` is as exact as eager torch in the same dtype; else what is wrong, in words."""
    return _check_attend(impl, case.heads, case.kv_heads, case.dim, case.dtype, case.step, str(device), case.p)


def check_decode(case: Case, device: torch.device) -> str:
    """The same for `decode_attend`."""
    dtype, generator = dtype_of(case), torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float64, generator=generator)

    cache = (3, LENGTH, case.kv_heads, case.dim)
    inputs = [randn(3, case.heads, case.dim), randn(*cache), randn(*cache)]
    rows = torch.tensor([LENGTH - 1, -1, 77], device=device)

    def run(impl: str) -> Callable[..., list[Tensor]]:
        return lambda q, k, v: [decode_attend(q, k, v, rows, impl=impl)]

    return compare(run("auto"), run("reference"), inputs, dtype, 2 * LENGTH * case.dim)


@functools.cache
def _check_attend(impl: str, heads: int, kv_heads: int, dim: int, dtype: str, step: str, device: str, p: float) -> str:
    where = torch.device(device)
    generator = torch.Generator(where).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=where, dtype=torch.float64, generator=generator)

    taken = torch.rand(2, LENGTH, 1, device=where, generator=generator) < max(p, 0.1)
    capacity = int(taken.sum(1).max()) + 3
    rows = compact(taken, capacity).rows
    keys = (2, LENGTH, kv_heads, dim)
    inputs = [randn(2, capacity, heads, dim), randn(*keys), randn(*keys)]

    def run(impl: str) -> Callable[..., list[Tensor]]:
        def call(*given: Tensor) -> list[Tensor]:
            if step == "forward":
                return [attend(*given, rows=rows, impl=impl)]
            leaves = [tensor.clone().requires_grad_() for tensor in given]
            with torch.enable_grad():
                out = attend(*leaves, rows=rows, impl=impl)
                pull = torch.nn.functional.normalize(torch.ones_like(out), dim=-1)
                return [out.detach(), *torch.autograd.grad(out, leaves, pull)]

        return call

    # The sum over keys, and in the backward pass also that over the rows of all heads of a kv head.
    reduction = 2 * LENGTH * dim * (1 if step == "forward" else heads // kv_heads)
    return compare(run(impl), run("reference"), inputs, getattr(torch, dtype), reduction)


@torch.no_grad()
def compare(
    fast: Callable[..., list[Tensor]], reference: Callable[..., list[Tensor]], inputs: list[Tensor],
    dtype: torch.dtype, reduction: int,
) -> str:  # fmt: skip
    """ "" or what is wrong.

    err(fast) ≤ err(reference in the dtype) + sqrt(reduction) · eps · size, against the reference in float64.
    """
    rounded = [tensor.to(dtype) for tensor in inputs]
    truth = reference(*(tensor.double() for tensor in rounded))
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    for name, want, base, have in zip(names, truth, reference(*rounded), fast(*rounded), strict=False):
        size = max(1.0, float(want.abs().max()))
        limit = float((base.double() - want).abs().max()) + math.sqrt(reduction) * torch.finfo(dtype).eps * size
        error = float((have.double() - want).abs().max())
        # Written so that a NaN is wrong.
        if not error <= limit:
            return f"self-check: {name} is off by {error:.3g}, allowed {limit:.3g}; no ratio is shown"
    return ""
