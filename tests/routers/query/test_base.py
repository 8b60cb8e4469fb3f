"""Laws of every registered query router, on its own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from routing_laws import BY_ROW, assert_same, lively, routers, wake
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QUERY_ROUTERS, Gating, QueryRouter, Route, RouterContext

WIDTH, LENGTH = 16, 13
ALL = [*routers(), *routers(causal=False)]


def build(name: str, groups: int = 1, **context: Any) -> QueryRouter:
    made = QUERY_ROUTERS.build(lively(name), context=RouterContext(width=WIDTH, groups=groups, **context)).double()
    wake(made)
    return made.eval()


def inputs(batch: int = 3, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.rand(batch, LENGTH, generator=generator) < 0.5


def reading(x: torch.Tensor, **options: Any) -> RoutingMode:
    """A pass over `x` [B, T, E] whose token ids are a function of x: few enough that some repeat."""
    return RoutingMode(tokens=(3 * x[..., 0]).round().long() % 7, **options)


@pytest.mark.parametrize(("name", "groups"), list(itertools.product(ALL, (1, 2))))
def test_a_route_has_one_gate_weight_and_decision_a_token_and_group(name: str, groups: int) -> None:
    x, hint = inputs()
    route, _ = build(name, groups)(x, mode=reading(x), hint=hint)
    assert isinstance(route, Route)
    for part in (route.gate, route.weight, route.taken):
        assert part.shape == (3, LENGTH, groups)
    assert route.taken.dtype == torch.bool
    assert bool(((route.gate >= 0) & (route.gate <= 1)).all())
    assert bool((route.weight[~route.taken] == 0).all())


@pytest.mark.parametrize(("name", "groups"), list(itertools.product(routers(), (1, 2))))
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [5, 1, 7]])
def test_decisions_in_pieces_are_those_of_the_whole(name: str, groups: int, sizes: list[int]) -> None:
    router, (x, hint) = build(name, groups), inputs()
    whole, _ = router(x, mode=reading(x), hint=hint)
    state: Any = router.init_state(3, device=x.device, dtype=x.dtype)
    parts = []
    for piece, told in zip(x.split(sizes, 1), hint.split(sizes, 1), strict=True):
        route, state = router(piece, mode=reading(piece), state=state, hint=told)
        parts.append(route)
    assert torch.equal(torch.cat([route.taken for route in parts], 1), whole.taken)
    assert_same(torch.cat([route.gate for route in parts], 1), whole.gate, terms=4 * WIDTH + 64)


@pytest.mark.parametrize("name", routers())
def test_future_tokens_do_not_change_past_decisions(name: str) -> None:
    router, (x, hint) = build(name), inputs()
    before, _ = router(x, mode=reading(x), hint=hint)
    for place in range(1, LENGTH):
        other = torch.cat((x[:, :place], inputs(seed=place)[0][:, place:]), 1)
        after, _ = router(other, mode=reading(other), hint=hint)
        assert torch.equal(after.taken[:, :place], before.taken[:, :place])
        assert torch.equal(after.gate[:, :place], before.gate[:, :place])


@pytest.mark.parametrize("name", [name for name in ALL if name not in BY_ROW])
def test_a_decision_does_not_depend_on_the_batch(name: str) -> None:
    router, (x, hint) = build(name), inputs()
    batch, _ = router(x, mode=reading(x), hint=hint)
    alone, _ = router(x[2:], mode=reading(x[2:]), hint=hint[2:])
    assert torch.equal(alone.taken, batch.taken[2:])
    assert_same(alone.gate, batch.gate[2:], terms=4 * WIDTH + 64)


@pytest.mark.parametrize(("name", "noise"), list(itertools.product(ALL, ("none", "bernoulli", "gumbel"))))
def test_sampled_gates_read_the_given_generator_only(name: str, noise: str) -> None:
    x, hint = inputs()
    router = build(name, gating=Gating(noise=noise)).train()
    before = torch.get_rng_state()
    taken = []
    for _ in range(2):
        mode = reading(x, sample=True, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            taken.append(router(x, mode=mode, hint=hint)[0].taken)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(taken[0], taken[1])


@pytest.mark.parametrize(("name", "groups"), list(itertools.product(routers(), (1, 2))))
@pytest.mark.parametrize("gradient", ["straight_through", "scaled"])
def test_a_learned_router_learns_from_the_weight_and_from_the_probability(
    name: str, groups: int, gradient: str
) -> None:
    router, (x, hint) = build(name, groups, gating=Gating(gradient=gradient)), inputs()
    route, _ = router(x, mode=reading(x), hint=hint)
    learned = [p for p in router.parameters() if p.requires_grad]
    if not router.learned and name != "shuffled":
        assert not route.weight.requires_grad and not route.gate.requires_grad
        return
    assert learned
    for value in (route.weight, route.gate):
        grads = torch.autograd.grad(value.square().sum(), learned, retain_graph=True)
        assert all(bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("name", [name for name in ALL if not QUERY_ROUTERS.get(name).causal])
def test_a_router_that_is_not_causal_names_one_that_is(name: str) -> None:
    assert QUERY_ROUTERS.get(QUERY_ROUTERS.get(name).causal_variant).causal
