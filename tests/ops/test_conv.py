"""Causal convolution: the sum over taps, whole, in segments and one step at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.errors import ShapeError
from turnout.ops import causal_conv, conv


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_taps(x: Tensor, weight: Tensor, state: Tensor | None = None) -> Tensor:
    """The equation as written, one tap at a time."""
    n_taps, n_tokens = weight.shape[1], x.shape[1]
    weight = weight.repeat_interleave(x.shape[2] // weight.shape[0], 0)
    if state is None:
        state = x.new_zeros(x.shape[0], n_taps - 1, x.shape[2])
    context = torch.cat([state, x], 1)
    taps = [weight[:, j] * context[:, n_taps - 1 - j : n_taps - 1 - j + n_tokens] for j in range(n_taps)]
    return torch.stack(taps).sum(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_kernels", [2, 6])
@pytest.mark.parametrize("n_taps,n_tokens", [(1, 5), (3, 1), (4, 65), (8, 63), (16, 100), (64, 33), (128, 100)])
def test_it_is_the_sum_over_taps(n_taps: int, n_tokens: int, n_kernels: int, dtype: torch.dtype) -> None:
    x, state = randn(3, n_tokens, 6), randn(3, n_taps - 1, 6, seed=1)
    assert_as_exact_as_eager(
        lambda x, w, s: causal_conv(x, w, s)[0],
        by_taps,
        (x, randn(n_kernels, n_taps, seed=2), state),
        reduction=max(n_taps, 3 * n_tokens),
        dtype=dtype,
    )


@pytest.mark.parametrize("n_kernels", [2, 6])
@pytest.mark.parametrize("n_taps,n_tokens", [(1, 5), (9, 63), (32, 200), (64, 33), (128, 300), (300, 150)])
def test_the_matrix_product_for_gpus_is_the_sum_over_taps(n_taps: int, n_tokens: int, n_kernels: int) -> None:
    assert_as_exact_as_eager(
        lambda x, w: conv._as_matrix(torch.nn.functional.pad(x, (0, 0, n_taps - 1, 0)), w),
        by_taps,
        (randn(3, n_tokens, 6), randn(n_kernels, n_taps, seed=2)),
        reduction=max(n_taps, 3 * n_tokens),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_taps,n_tokens", [(1, 5), (4, 63), (8, 9)])
def test_the_shifted_sums_for_compilers_are_the_sum_over_taps(n_taps: int, n_tokens: int, dtype: torch.dtype) -> None:
    assert_as_exact_as_eager(
        lambda x, w: conv.fused_shifts(torch.nn.functional.pad(x, (0, 0, n_taps - 1, 0)), w),
        by_taps,
        (randn(3, n_tokens, 6), randn(2, n_taps, seed=2)),
        reduction=max(n_taps, 3 * n_tokens),
        dtype=dtype,
    )


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 1000))
def test_segments_and_steps_are_the_whole(n_tokens: int, n_taps: int, seed: int) -> None:
    x, weight, state = randn(2, n_tokens, 4, seed=seed), randn(2, n_taps, seed=1), randn(2, n_taps - 1, 4, seed=2)
    whole, last = causal_conv(x, weight, state)
    cut = seed % (n_tokens + 1)
    first, middle = causal_conv(x[:, :cut], weight, state)
    second, end = causal_conv(x[:, cut:], weight, middle)
    assert torch.allclose(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    assert torch.equal(end, last)
    steps = []
    for t in range(n_tokens):
        y, state = causal_conv(x[:, t : t + 1], weight, state)
        steps.append(y)
    assert torch.allclose(torch.cat(steps, 1), whole, rtol=0, atol=1e-12)
    assert torch.equal(state, last)


@pytest.mark.parametrize("n_taps", [4, 64])
def test_later_tokens_do_not_change_earlier_outputs_by_one_bit(n_taps: int) -> None:
    x, weight = randn(2, 100, 8).float(), randn(4, n_taps, seed=1).float()
    changed = x.clone()
    changed[:, 37:] = 9.0
    assert torch.equal(causal_conv(x, weight)[0][:, :37], causal_conv(changed, weight)[0][:, :37])
    assert not torch.equal(causal_conv(x, weight)[0][:, 37], causal_conv(changed, weight)[0][:, 37])


def test_without_a_state_the_past_is_zero() -> None:
    x, weight = randn(2, 9, 4), randn(4, 5, seed=1)
    with_zeros, _ = causal_conv(x, weight, torch.zeros(2, 4, 4, dtype=torch.float64))
    assert torch.equal(causal_conv(x, weight)[0], with_zeros)
    identity = torch.zeros(4, 5, dtype=torch.float64)
    identity[:, 0] = 1
    assert torch.equal(causal_conv(x, identity)[0], x)


@pytest.mark.parametrize("n_taps", [3, 9])
def test_the_gradients_are_the_derivative_twice(n_taps: int) -> None:
    x, weight, state = randn(2, 5, 4), randn(2, n_taps, seed=1), randn(2, n_taps - 1, 4, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, state)]
    assert torch.autograd.gradcheck(causal_conv, inputs)
    assert torch.autograd.gradgradcheck(lambda *inputs: causal_conv(*inputs)[0], inputs)


def test_autocast_computes_in_its_dtype_and_the_state_keeps_that_of_the_input() -> None:
    x, weight = randn(2, 20, 4).float(), randn(2, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = causal_conv(x, weight)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32


def test_bad_shapes_are_refused() -> None:
    x = torch.randn(2, 5, 6)
    with pytest.raises(ShapeError, match=r"expected floats \[B, T, E\]"):
        causal_conv(x[0], torch.randn(6, 3))
    for weight in (torch.randn(4, 3), torch.randn(6), torch.randn(6, 0)):
        with pytest.raises(ShapeError, match="weight has shape"):
            causal_conv(x, weight)
    with pytest.raises(ShapeError, match="state has shape"):
        causal_conv(x, torch.randn(6, 3), torch.randn(2, 3, 6))
