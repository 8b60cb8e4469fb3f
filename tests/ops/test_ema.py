"""Exponential moving average: the recurrence, computed in parallel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.errors import ConfigError, ShapeError
from turnout.ops import causal_ema


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recurrence(x: Tensor, state: Tensor, decay: float) -> Tensor:
    out = []
    for t in range(x.shape[1]):
        state = decay * state + (1 - decay) * x[:, t]
        out.append(state)
    return torch.stack(out, 1)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("n_tokens", [1, 2, 63, 64, 65, 100, 300])
def test_it_is_the_recurrence(n_tokens: int, decay: float) -> None:
    x, state = randn(2, n_tokens, 3), randn(2, 3, seed=1)
    y, last = causal_ema(x, decay, state)
    want = recurrence(x, state, decay)
    assert torch.allclose(y, want, rtol=0, atol=1e-13) and torch.equal(last, y[:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_as_exact_as_the_recurrence_in_every_dtype(dtype: torch.dtype) -> None:
    assert_as_exact_as_eager(
        lambda x, s: causal_ema(x, 0.9, s)[0],
        lambda x, s: recurrence(x, s, 0.9),
        (randn(2, 200, 3), randn(2, 3, seed=1)),
        reduction=200,
        dtype=dtype,
    )


@given(st.integers(1, 150), st.integers(0, 1000))
def test_segments_and_steps_are_the_whole(n_tokens: int, seed: int) -> None:
    x, state = randn(2, n_tokens, 3, seed=seed), randn(2, 3, seed=1)
    whole, last = causal_ema(x, 0.9, state)
    cut = seed % (n_tokens + 1)
    first, middle = causal_ema(x[:, :cut], 0.9, state)
    second, end = causal_ema(x[:, cut:], 0.9, middle)
    assert torch.allclose(torch.cat([first, second], 1), whole, rtol=0, atol=1e-13)
    assert torch.allclose(end, last, rtol=0, atol=1e-13)
    for t in range(n_tokens):
        y, state = causal_ema(x[:, t : t + 1], 0.9, state)
        assert torch.allclose(y[:, 0], whole[:, t], rtol=0, atol=1e-13)


def test_later_tokens_do_not_change_earlier_averages_by_one_bit() -> None:
    x = randn(2, 200, 3).float()
    changed = x.clone()
    changed[:, 90:] = 5.0
    assert torch.equal(causal_ema(x, 0.9)[0][:, :90], causal_ema(changed, 0.9)[0][:, :90])


def test_the_gradient_is_the_derivative() -> None:
    x, state = randn(2, 70, 2).requires_grad_(), randn(2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: causal_ema(x, 0.9, s), (x, state))


def test_the_state_of_half_precision_is_float32_and_autocast_does_not_change_that() -> None:
    x = randn(2, 70, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = causal_ema(x, 0.9)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    want, last = causal_ema(x, 0.9)
    assert torch.equal(y, want) and torch.equal(state, last)


def test_bad_arguments_are_refused() -> None:
    x = torch.randn(2, 5, 3)
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="0 <= decay < 1"):
            causal_ema(x, decay)
    with pytest.raises(ShapeError, match=r"expected \[B, E\] = \[2, 3\]"):
        causal_ema(x, 0.9, torch.zeros(3))
    with pytest.raises(ShapeError, match="expected floats"):
        causal_ema(x.long(), 0.9)
