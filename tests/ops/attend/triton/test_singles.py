"""A window and single keys by the kernels: what torch computes, in the interpreter, and nothing spilled on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.layers.chosen import near_and_chosen

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_pass_their_tests_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_the_kernels_spill_no_register() -> None:
    from compile_ahead import singles_misfits

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(singles_misfits, 90).result() == []


def agree(
    n_rows: int, n_keys: int, heads: int, groups: int, dim: int, *, lists: int, window: int, marked: bool,
    dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> None:  # fmt: skip
    from turnout.ops.attend.triton.singles import window_and_singles

    source = torch.Generator().manual_seed(0)
    shapes = ((2, n_rows, heads, dim), (2, n_keys, groups, dim), (2, n_keys, groups, dim))
    inputs = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
    at = torch.arange(n_keys - n_rows, n_keys)[None, :, None, None]
    keys = torch.rand(2, n_rows, lists, n_keys, generator=source).argsort(-1)[..., :3]
    # Some in nobody's reach, some keys that every row chooses.
    keys = torch.cat([torch.where(keys == 0, -1, keys), torch.zeros_like(keys[..., :1])], -1)
    keys = keys.masked_fill(keys > at - window, -1)

    def fast(q: Tensor, k: Tensor, v: Tensor, *mark: Tensor) -> Tensor:
        given = [x.to(device) for x in (q, k, v)]
        return window_and_singles(*given, keys.to(device), window, mark[0].to(device) if mark else None).to("cpu")

    def eager(q: Tensor, k: Tensor, v: Tensor, *mark: Tensor) -> Tensor:
        return near_and_chosen(q, k, v, keys, window, None, mark=mark[0] if mark else None, impl="reference")

    extra = [torch.linspace(-1, 1, heads, dtype=torch.float64)] if marked else []
    assert_as_exact_as_eager(fast, eager, [*inputs, *extra], reduction=2 * n_keys * dim, dtype=dtype)


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the first test starts")
@pytest.mark.parametrize(
    ("n_rows", "n_keys", "heads", "groups", "dim", "lists", "window", "marked"),
    [(17, 17, 2, 1, 8, 1, 1, True), (5, 19, 2, 2, 20, 2, 4, False), (1, 9, 1, 1, 16, 1, 3, True)],
)
def test_the_kernels_compute_what_torch_computes(
    n_rows: int, n_keys: int, heads: int, groups: int, dim: int, lists: int, window: int, marked: bool
) -> None:
    agree(n_rows, n_keys, heads, groups, dim, lists=lists, window=window, marked=marked)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "dim", "lists"), [(4, 4, 128, 1), (4, 2, 64, 2), (8, 8, 32, 8)])
def test_the_kernels_compute_what_torch_computes_on_a_gpu(
    dtype: torch.dtype, heads: int, groups: int, dim: int, lists: int
) -> None:
    agree(700, 700, heads, groups, dim, lists=lists, window=41, marked=True, dtype=dtype, device="cuda")


@pytest.mark.gpu
def test_repeats_agree_bit_for_bit_on_a_gpu() -> None:
    from turnout.ops.attend.triton.singles import window_and_singles

    q, k, v = (torch.randn(1, 2000, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    # Every row chooses the first keys.
    keys = torch.arange(2000, device="cuda")[:, None] - torch.tensor([100, 5000], device="cuda")
    keys = torch.cat([keys.clamp(min=-1), torch.zeros_like(keys[:, :1])], 1)
    keys = keys.masked_fill(keys > torch.arange(2000, device="cuda")[:, None] - 32, -1)[None, :, None]
    keys[:, :, :, 2].masked_fill_(keys[:, :, :, 0] == 0, -1)

    def once() -> list[Tensor]:
        out = window_and_singles(q, k, v, keys, 32, None)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)
