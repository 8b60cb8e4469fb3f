"""The reference against masks and biases written one pair at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager, brute_bias, brute_visible, eager_attend, rows_of
from turnout.ops import attend

B, S, H, G, D = 2, 13, 4, 2, 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_rows(n_lists: int = 1, n_keys: int = S) -> Tensor:
    taken = torch.rand(B, n_keys, n_lists, generator=torch.Generator().manual_seed(1)) < 0.5
    return rows_of(taken)


@pytest.mark.parametrize("n_lists", [1, G])
@pytest.mark.parametrize("window,sinks", [(None, 0), (1, 0), (3, 0), (3, 2), (S, 5)])
def test_the_rows_see_what_a_brute_force_mask_allows(n_lists: int, window: int | None, sinks: int) -> None:
    rows = some_rows(n_lists)
    q, k, v = randn(B, rows.shape[-1], H, D), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)
    visible = brute_visible(rows, S, H, window=window, sinks=sinks)
    assert_as_exact_as_eager(
        lambda q, k, v: attend(q, k, v, rows=rows, window=window, sinks=sinks, impl="reference"),
        lambda q, k, v: eager_attend(q, k, v, visible),
        (q, k, v),
        reduction=S,
    )


def test_log_decay_is_the_sum_of_the_steps_between_key_and_row() -> None:
    rows = some_rows(G)
    q, k, v = randn(B, rows.shape[-1], H, D), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)
    log_decay = -randn(B, S, H, seed=3).abs()
    visible = brute_visible(rows, S, H)
    assert_as_exact_as_eager(
        lambda q, k, v, d: attend(q, k, v, rows=rows, log_decay=d, impl="reference"),
        lambda q, k, v, d: eager_attend(q, k, v, visible, brute_bias(d, rows)),
        (q, k, v, log_decay),
        reduction=S * S,
    )


def test_one_log_decay_a_head_is_that_of_every_step_with_its_gradient() -> None:
    q, k, v = randn(B, S, H, D), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)
    rates = (-randn(H, seed=3).abs()).requires_grad_()
    out = [attend(q, k, v, log_decay=x) for x in (rates, rates.expand(B, S, H))]
    assert torch.equal(*out)
    assert torch.equal(*(torch.autograd.grad(one.square().sum(), rates)[0] for one in out))
    for batch, length in ((0, S), (B, 0)):
        shape = (batch, length, H, D)
        assert attend(*(x[:batch, :length] for x in (q, k, v)), log_decay=rates.detach()).shape == shape


def test_chosen_keys_are_intersected_with_the_causal_window() -> None:
    rows = some_rows()
    keys = torch.randint(-1, S, (B, rows.shape[-1], G, 4), generator=torch.Generator().manual_seed(4))
    q, k, v = randn(B, rows.shape[-1], H, D), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)
    visible = brute_visible(rows, S, H, keys=keys, window=6, sinks=1)
    assert not visible.any(-1).all(), "the example should hold rows that see nothing"
    assert_as_exact_as_eager(
        lambda q, k, v: attend(q, k, v, rows=rows, keys=keys, window=6, sinks=1, impl="reference"),
        lambda q, k, v: eager_attend(q, k, v, visible),
        (q, k, v),
        reduction=S,
    )


def test_a_row_without_visible_keys_is_zero_and_its_gradients_are_finite() -> None:
    q, k, v = (randn(B, 3, H, D).requires_grad_() for _ in range(3))
    keys = torch.full((B, 3, H, 2), -1)
    out = attend(q, k, v, keys=keys)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert not grad.any()


def test_every_gradient_of_the_reference_is_the_derivative() -> None:
    rows = torch.tensor([[[0, 2, 3, -1]], [[1, 4, -1, -1]]])
    q, k, v = randn(B, 4, 2, 3), randn(B, 5, 1, 3, seed=1), randn(B, 5, 1, 3, seed=2)
    log_decay, directions, suppress = -randn(B, 5, 2, seed=3).abs(), randn(2, 2, 3, seed=4), randn(B, 4, 2, 2, seed=5)

    def function(q: Tensor, k: Tensor, v: Tensor, a: Tensor, d: Tensor, r: Tensor) -> Tensor:
        return attend(
            q, k, v, rows=rows, log_decay=a, window=3, sinks=1, directions=unit(d), suppress=r, impl="reference"
        )  # fmt: skip

    inputs = [x.requires_grad_() for x in (q, k, v, log_decay, directions, suppress)]
    assert torch.autograd.gradcheck(function, inputs)


def unit(directions: Tensor) -> Tensor:
    return torch.nn.functional.normalize(directions, dim=-1)


def orthonormal(n_directions: int, width: int = D) -> Tensor:
    return torch.linalg.qr(randn(H, width, n_directions, seed=7)).Q.transpose(1, 2)


def test_full_suppression_of_orthonormal_directions_removes_them_and_is_idempotent() -> None:
    q, k, v = randn(B, S, H, D), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)
    directions, suppress = orthonormal(2), torch.ones(B, S, H, 2, dtype=torch.float64)
    out = attend(q, k, v, directions=directions, suppress=suppress)
    along = torch.einsum("brhd,hkd->brhk", out, directions)
    assert along.abs().max() < 1e-14
    assert torch.allclose(out - torch.einsum("brhk,hkd->brhd", along, directions), out, rtol=0, atol=1e-14)
    assert not torch.allclose(out, attend(q, k, v))


def test_suppression_takes_away_each_direction_by_its_share() -> None:
    q, k, v = randn(B, S, H, D), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)
    directions, suppress = unit(randn(H, 3, D, seed=8)), randn(B, S, H, 3, seed=9)
    plain, out = attend(q, k, v), attend(q, k, v, directions=directions, suppress=suppress)
    b, t, h = 1, 5, 2
    want = plain[b, t, h].clone()
    for one in range(3):
        want -= suppress[b, t, h, one] * (plain[b, t, h] @ directions[h, one]) * directions[h, one]
    assert torch.allclose(out[b, t, h], want, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    q, k, v = (randn(B, S, H, D, seed=seed).to(dtype) for seed in range(3))
    exact = attend(q.double(), k.double(), v.double(), impl="reference")
    out = attend(q, k, v, impl="reference")
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
