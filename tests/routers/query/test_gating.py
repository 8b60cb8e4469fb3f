"""From logit to decision: frequencies, values and gradients are those of the formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from turnout.routers.gate_options import GRADIENTS, NOISES
from turnout.routers.mode import RoutingMode
from turnout.routers.query import Gating, Route

N = 20_000
# Hoeffding: a mean of N draws is further than this from its probability once in 1e9 times.
BOUND = math.sqrt(math.log(2e9) / (2 * N))


def sampling(seed: int = 0) -> RoutingMode:
    return RoutingMode(sample=True, generator=torch.Generator().manual_seed(seed))


def logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(4, 9, 2, generator=generator, dtype=torch.float64)).requires_grad_()


def logistic(z: Tensor, seed: int = 0) -> Tensor:
    """The noise that gumbel gating adds."""
    u = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed)).clamp(min=2.0**-25)
    return (torch.log(u) - torch.log1p(-u)).to(z.dtype)


@pytest.mark.parametrize("noise", ["bernoulli", "gumbel"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_a_gate_opens_as_often_as_its_probability_says(noise: str, temperature: float) -> None:
    gating = Gating(noise=noise, temperature=temperature if noise == "gumbel" else 1.0)
    for z in (-4.0, -1.0, 0.0, 0.5, 3.0):
        route = gating.decide(torch.full((1, N, 1), z), sampling())
        assert abs(float(route.taken.double().mean()) - torch.sigmoid(torch.tensor(z)).item()) <= BOUND


@pytest.mark.parametrize(("noise", "gradient"), list(itertools.product(NOISES, GRADIENTS)))
def test_without_sampling_a_gate_is_open_when_its_logit_is_positive(noise: str, gradient: str) -> None:
    z = logits()
    route = Gating(noise=noise, gradient=gradient).decide(z, RoutingMode())
    assert torch.equal(route.taken, z > 0)
    assert torch.equal(route.gate, torch.sigmoid(z))
    closed = Gating().decide(torch.zeros(1, 1, 1), RoutingMode())
    assert not bool(closed.taken)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_straight_through_weight_is_exactly_zero_or_one(noise: str, dtype: torch.dtype) -> None:
    z = 3 * torch.randn(50, 40, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    route = Gating(noise=noise).decide(z.requires_grad_(), sampling())
    assert torch.equal(route.weight, route.taken.to(route.weight.dtype))
    assert route.gate.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("noise", "gradient"), list(itertools.product(NOISES, GRADIENTS)))
@pytest.mark.parametrize("sample", [True, False])
def test_weights_and_their_gradients_are_those_of_the_formulas(noise: str, gradient: str, sample: bool) -> None:
    temperature = 0.7 if noise == "gumbel" else 1.0
    z = logits()
    mode = sampling() if sample else RoutingMode()
    route = Gating(noise=noise, gradient=gradient, temperature=temperature).decide(z, mode)
    # ds/dz = s (1 - s) / temperature of whatever sigmoid is the surrogate.
    noisy = sample and noise == "gumbel"
    s = torch.sigmoid((z + logistic(z)) / temperature) if noisy else torch.sigmoid(z)
    slope = s * (1 - s) / (temperature if noisy else 1.0)
    taken = route.taken.to(z.dtype)
    want = taken * s if gradient == "scaled" else taken
    (grad,) = torch.autograd.grad(route.weight.sum(), z)
    torch.testing.assert_close(route.weight, want, rtol=4 * torch.finfo(z.dtype).eps, atol=0)
    limit = 8 * torch.finfo(z.dtype).eps / temperature
    assert (grad - slope * (taken if gradient == "scaled" else 1)).abs().max() <= limit
    if noisy:
        assert torch.equal(route.taken, z + logistic(z) > 0)


def test_the_probability_is_free_of_noise_and_differentiable() -> None:
    for noise in NOISES:
        z = logits()
        route = Gating(noise=noise).decide(z, sampling())
        assert torch.equal(route.gate, torch.sigmoid(z))
        (grad,) = torch.autograd.grad(route.gate.sum(), z)
        assert bool((grad > 0).all())


@pytest.mark.parametrize("noise", NOISES)
def test_sampling_reads_the_given_generator_only(noise: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (Gating(noise=noise).decide(logits(), sampling(seed)).taken for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert torch.equal(one, other) is (noise == "none")


def test_extreme_draws_and_logits_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for u in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(RoutingMode, "uniform", lambda self, shape, device, u=u: torch.full(shape, u))
        for noise in ("bernoulli", "gumbel"):
            for gradient in GRADIENTS:
                z = torch.tensor([[[-200.0, -20.0, 0.0, 20.0, 200.0]]], requires_grad=True)
                route = Gating(noise=noise, gradient=gradient).decide(z, sampling())
                (grad,) = torch.autograd.grad(route.weight.sum(), z)
                assert bool(route.weight.isfinite().all()) and bool(grad.isfinite().all())


def test_a_fixed_decision_is_its_own_gate_and_weight() -> None:
    taken = torch.tensor([[[True], [False]]])
    route = Route.fixed(taken, torch.float32)
    assert torch.equal(route.gate, taken.float()) and torch.equal(route.weight, taken.float())
    assert not route.weight.requires_grad


def test_at_the_bound_only_the_gradient_that_closes_a_gate_passes() -> None:
    logit = torch.tensor([[[-9.0], [1.0], [9.0], [9.0]]], dtype=torch.float64, requires_grad=True)
    route = Gating(noise="none", max_logit=4.0).decide(logit, RoutingMode())
    at_bound = 1 / (1 + math.exp(-4.0))
    assert route.gate.flatten().tolist()[2:] == pytest.approx([at_bound] * 2, rel=1e-12)
    # The loss falls with the third gate and rises with the others.
    slope = torch.tensor([[[1.0], [1.0], [-1.0], [1.0]]], dtype=torch.float64)
    (grad,) = torch.autograd.grad((slope * route.gate).sum(), [logit])
    expected = [p * (1 - p) for p in torch.sigmoid(logit.detach()).flatten().tolist()[:2]]
    assert grad.flatten().tolist() == pytest.approx([*expected, 0.0, at_bound * (1 - at_bound)], rel=1e-12)


def test_a_bound_above_every_logit_changes_nothing() -> None:
    logit = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    plain, bound = (Gating(noise="none", max_logit=limit).decide(logit, RoutingMode()) for limit in (None, 50.0))
    assert torch.equal(plain.gate, bound.gate) and torch.equal(plain.weight, bound.weight)
