"""The running threshold holds its usage without looking ahead, learned or frozen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QUERY_ROUTERS, Gating, RouterContext
from turnout.routers.query.threshold import ThresholdRouter

WIDTH = 16


def build(spec: str, **context: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return QUERY_ROUTERS.build(spec, context=RouterContext(width=WIDTH, **context))


def batches(n: int, batch: int = 8, length: int = 128, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, length, WIDTH, generator=generator) for _ in range(n)]


def sampling(seed: int = 0) -> RoutingMode:
    return RoutingMode(sample=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["threshold", "frozen"])
@pytest.mark.parametrize("usage", [0.02, 0.0625, 0.5])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("noise", ["none", "bernoulli", "gumbel"])
def test_usage_is_held_in_training_and_evaluation_whatever_the_noise(
    name: str, usage: float, groups: int, noise: str
) -> None:
    router = build(f"{name}:usage={usage},decay=0.8", groups=groups, gating=Gating(noise=noise)).train()
    mode = sampling()
    for x in batches(10):
        router(x, mode=mode)
    in_training = torch.stack([router(x, mode=mode)[0].taken for x in batches(20, seed=1)]).double()
    router.eval()
    in_evaluation = torch.stack([router(x, mode=RoutingMode())[0].taken for x in batches(20, seed=2)]).double()
    # The usage of a batch of n tokens at the quantile of n others has a standard deviation below sqrt(2 p (1-p) / n),
    # and the threshold averages over about (1 + decay) / (1 - decay) = 9 batches: six deviations of a single batch.
    bound = 6 * math.sqrt(2 * usage * (1 - usage) / (8 * 128))
    for taken in (in_training, in_evaluation):
        assert float((taken.mean(dim=(0, 1, 2)) - usage).abs().max()) <= bound


def test_the_first_batch_sets_the_threshold_and_later_ones_move_it_slowly() -> None:
    router = build("threshold:usage=0.25,decay=0.9").train()
    first, second = batches(2)
    quantiles = []
    for x in (first, second):
        score = router.proj(x).flatten()
        # A quarter of the scores lie strictly above.
        quantiles.append(score.kthvalue(round(0.75 * score.numel())).values.item())
        router(x, mode=RoutingMode())
    assert router.threshold.item() == pytest.approx(0.9 * quantiles[0] + 0.1 * quantiles[1])


def test_a_batch_is_decided_before_it_moves_the_threshold() -> None:
    router = build("threshold").train()
    (x,) = batches(1)
    before = router.threshold.clone()
    route, _ = router(x, mode=RoutingMode())
    assert torch.equal(route.taken, router.proj(x) > before)
    assert not torch.equal(router.threshold, before)


@pytest.mark.parametrize("name", ["threshold", "frozen"])
def test_evaluation_and_passes_without_gradient_move_nothing(name: str) -> None:
    router = build(name).train()
    (x,) = batches(1)
    router(x, mode=RoutingMode())
    held = {key: value.clone() for key, value in router.state_dict().items()}
    with torch.no_grad():
        router(2 * x, mode=RoutingMode())
    router.eval()
    router(2 * x, mode=RoutingMode())
    assert all(torch.equal(value, held[key]) for key, value in router.state_dict().items())


def test_the_threshold_travels_with_the_weights() -> None:
    router, twin = build("threshold").train(), build("threshold")
    (x,) = batches(1)
    router(x, mode=RoutingMode())
    twin.load_state_dict(router.state_dict())
    assert torch.equal(twin.eval()(x, mode=RoutingMode())[0].taken, router.eval()(x, mode=RoutingMode())[0].taken)


def test_a_frozen_router_learns_nothing_and_teaches_nothing() -> None:
    router = build("frozen").train()
    (x,) = batches(1)
    x.requires_grad_()
    route, _ = router(x, mode=sampling())
    assert not route.weight.requires_grad and not route.gate.requires_grad
    assert not router.proj.weight.requires_grad


def test_a_learned_threshold_router_gets_a_gradient_and_passes_one_on() -> None:
    router = build("threshold").train()
    (x,) = batches(1)
    x.requires_grad_()
    router(x, mode=sampling())[0].weight.sum().backward()
    assert bool(router.proj.weight.grad.any()) and bool(x.grad.any())


def test_frozen_is_the_threshold_router_with_its_weights_kept() -> None:
    assert isinstance(build("frozen"), ThresholdRouter)
    assert not build("threshold:frozen=true").proj.weight.requires_grad


@pytest.mark.parametrize("name", ["threshold", "frozen"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("usage=0.0", r"usage=0.0; expected 0 < usage < 1 \(use 'always' or 'never'\)"),
        ("usage=1.0", r"usage=1.0; expected"),
        ("decay=1.0", r"decay=1.0; expected 0 <= decay < 1"),
        ("decay=-0.5", r"decay=-0.5; expected"),
    ],
)
def test_impossible_options_are_refused(name: str, options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(f"{name}:{options}")
