"""The decode kernels mean what their reference means: all options, ragged lengths, shares that cross sequences.

They run under Triton's interpreter, which must be on before Triton is imported and would be on for every later test of
the process; so without it this file runs itself in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.ops.attend.decode import decode_attend

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the first test starts")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_pass_their_tests_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blank_behind(cache: Tensor, rows: Tensor) -> Tensor:
    """The cache with NaN where no row may look."""
    cache = cache.clone()
    for b, last in enumerate(rows.max(1).values.tolist()):
        cache[b, last + 1 :] = float("nan")
    return cache


def paged(cache: Tensor, page: int, *, spare: int = 3) -> tuple[Tensor, Tensor]:
    """Contiguous [B, S, G, D] → shuffled pages with unused ones full of NaN, and their table."""
    n_batch, n_keys = cache.shape[:2]
    per = n_keys // page
    order = torch.randperm(n_batch * per + spare, generator=torch.Generator().manual_seed(1))
    pages = cache.new_full((len(order), page, *cache.shape[2:]), float("nan"))
    table = order[: n_batch * per].view(n_batch, per).to(torch.int32)
    pages[table.long().flatten()] = cache.unflatten(1, (per, page)).flatten(0, 1)
    return pages, table


def assert_equal_to_the_reference(
    rows: Tensor, heads: int, groups: int, dim: int, dtype: torch.dtype, *, page: int = 0, decay: bool = False,
    n_directions: int = 0, **options: Any,
) -> None:  # fmt: skip
    n_batch, n_keys = len(rows), 48
    k, v = (blank_behind(randn(n_batch, n_keys, groups, dim, seed=seed), rows) for seed in (1, 2))
    if page:
        (k, options["page_table"]), (v, _) = paged(k, page), paged(v, page)
    if decay:
        options["total_decay"] = -randn(n_batch, n_keys, heads, seed=3).abs().cumsum(1)
    if n_directions:
        options["directions"] = torch.nn.functional.normalize(randn(heads, n_directions, dim, seed=4), dim=-1)
        options["suppress"] = randn(n_batch, heads, n_directions, seed=5)

    def run(impl: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return decode_attend(q, k, v, rows, impl=impl, **options)

    assert_as_exact_as_eager(
        lambda *inputs: run("triton", *inputs),
        lambda *inputs: run("reference", *inputs),
        (randn(n_batch, heads, dim, seed=0), k, v),
        reduction=2 * n_keys * dim,
        dtype=dtype,
        grads=False,
    )


# Lengths at both sides of a block, a single key, the whole cache, and sequences that stay local in between.
ROWS = torch.tensor([[-1], [0], [31], [-1], [32], [47]])
GROUP_ROWS = torch.tensor([[-1, 40], [7, -1], [-1, -1], [33, 2]])
LAYOUTS = [(1, 1, 32), (2, 2, 64), (4, 2, 24), (6, 2, 40), (3, 1, 16)]


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "groups", "dim"), LAYOUTS)
def test_every_length_and_layout(heads: int, groups: int, dim: int, dtype: torch.dtype) -> None:
    assert_equal_to_the_reference(ROWS, heads, groups, dim, dtype)


@interpreted
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 9},
        {"window": 33, "sinks": 3},
        {"window": 5, "sinks": 40},
        {"window": 99, "sinks": 2},
        {"decay": True},
        {"n_directions": 3},
        {"scale": 0.3},
        {"page": 16},
        {"page": 48},
        {"page": 6},
        {"page": 8, "window": 9, "sinks": 3, "decay": True, "n_directions": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [ROWS, GROUP_ROWS], ids=["tokens", "groups"])
def test_every_option(rows: Tensor, options: dict[str, Any]) -> None:
    assert_equal_to_the_reference(rows, 4, 2, 16, torch.float32, **options)


@interpreted
@pytest.mark.parametrize("n_programs", [1, 2, 5, 7, 100])
def test_any_number_of_programs_shares_the_work(n_programs: int) -> None:
    from turnout.ops.attend.triton.decode import decode_op

    q, k, v = randn(6, 4, 16, seed=0).float(), randn(6, 48, 2, 16, seed=1).float(), randn(6, 48, 2, 16, seed=2).float()

    def run(n: int) -> Tensor:
        return decode_op(q, k, v, ROWS, None, None, None, None, 0.25, 0, 0, n)

    assert_as_exact_as_eager(
        lambda *inputs: decode_op(*inputs, ROWS, None, None, None, None, 0.25, 0, 0, n_programs),
        lambda *inputs: decode_attend(*inputs, ROWS, impl="reference"),
        (q.double(), k.double(), v.double()),
        reduction=2 * 48 * 16,
        grads=False,
    )
    assert torch.equal(run(n_programs), run(n_programs))


@interpreted
def test_local_tokens_read_nothing_and_give_exact_zeros() -> None:
    nan = torch.full((2, 20, 1, 16), float("nan"))
    out = decode_attend(torch.randn(2, 2, 16), nan, nan, torch.tensor([-1, -1]), impl="triton")
    assert torch.equal(out, torch.zeros_like(out))


@interpreted
@pytest.mark.parametrize("shape", [(0, 2, 16), (2, 0, 16)])
def test_nothing_to_do_is_no_error(shape: tuple[int, ...]) -> None:
    from turnout.ops.attend.triton.decode import decode_op

    k = torch.zeros(shape[0], 4, 1, 16)
    rows = torch.zeros(shape[0], 1, dtype=torch.int64)
    assert decode_op(torch.zeros(shape), k, k, rows, None, None, None, None, 1.0, 0, 0, 0).shape == shape


@interpreted
def test_a_row_or_page_outside_the_cache_gives_nan_and_nothing_else_does() -> None:
    from turnout.ops.attend.triton.decode import decode_op

    q, k = torch.randn(3, 1, 16), torch.randn(3, 20, 1, 16)
    out = decode_op(q, k, k, torch.tensor([[19], [20], [3]]), None, None, None, None, 1.0, 0, 0, 0)
    assert bool(out[1].isnan().all()) and not bool(out[[0, 2]].isnan().any())
    table = torch.tensor([[0, 1], [0, 9], [2, -1]], dtype=torch.int32)
    out = decode_op(q, k, k, torch.tensor([[39], [39], [3]]), table, None, None, None, 1.0, 0, 0, 0)
    assert bool(out[1].isnan().all()) and not bool(out[[0, 2]].isnan().any())


@interpreted
def test_caches_with_strides_are_read_in_place() -> None:
    both = torch.randn(2, 30, 2, 3, 16)
    k, v = both.unbind(2)
    rows, q = torch.tensor([29, 11]), torch.randn(2, 3, 16)
    have = decode_attend(q, k, v, rows, impl="triton")
    assert torch.equal(have, decode_attend(q, k.contiguous(), v.contiguous(), rows, impl="triton"))
    transposed = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(have, decode_attend(q, transposed, v, rows, impl="triton"))


def test_the_operator_has_a_fake_kernel() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from turnout.ops.attend.triton.decode import decode_op

    with FakeTensorMode():
        q, k = torch.empty(2, 4, 16, dtype=torch.bfloat16), torch.empty(2, 8, 2, 16, dtype=torch.bfloat16)
        rows = torch.empty(2, 1, dtype=torch.int64)
        out = decode_op(q, k, k, rows, None, None, None, None, 1.0, 0, 0, 0)
        assert out.shape == q.shape and out.dtype == q.dtype
