"""The penalty is the number of its formula, and it reaches the router's weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from routing_laws import sequences, tiny, wake
from turnout.errors import ConfigError
from turnout.models import CausalLM, RoutingConfig
from turnout.routers.mode import RoutingMode
from turnout.routers.query import Route
from turnout.train.config import LOG_USAGE, LOG_USAGE_BY_LAYER, PENALTIES
from turnout.train.penalty import open_gates, penalty

PRESSURE = {"cost": 0.3, "quadratic": 2.0, "target": 0.1, "undecided": 0.7}
COST, QUADRATIC, TARGET, UNDECIDED = (torch.tensor(value) for value in PRESSURE.values())

KINDS = (*PENALTIES, LOG_USAGE, LOG_USAGE_BY_LAYER)


def routes(*groups: int) -> list[Route | None]:
    """Random decisions of one layer for each number of groups, for 3 sequences of 5 tokens; 0 = no router there."""
    generator = torch.Generator().manual_seed(0)

    def one(n: int) -> Route | None:
        gate, taken = torch.rand(3, 5, n, generator=generator), torch.rand(3, 5, n, generator=generator) < 0.5
        return Route(gate=gate, weight=taken.float(), taken=taken) if n else None

    return [one(n) for n in groups]


def by_hand(some: list[Route | None], part: str) -> tuple[float, int]:
    """Open gates per sequence and slots, one gate at a time."""
    total, slots = 0.0, 0
    for route in some:
        if route is not None:
            total += sum(getattr(route, part).flatten().tolist()) / 3
            slots += 5 * route.gate.shape[2]
    return total, slots


@pytest.mark.parametrize("groups", [(1,), (2, 2), (0, 1, 0, 1)])
def test_open_gates_are_counted_per_sequence_over_layers_tokens_and_groups(groups: tuple[int, ...]) -> None:
    some = routes(*groups)
    for hard, part in ((False, "gate"), (True, "weight")):
        n, slots = open_gates(some, hard=hard)
        want, want_slots = by_hand(some, part)
        assert slots == want_slots
        assert float(n) == pytest.approx(want, rel=100 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("groups", [(1,), (2, 2), (0, 1, 0, 1)])
def test_each_kind_is_its_formula(groups: tuple[int, ...]) -> None:
    some = routes(*groups)
    n, slots = by_hand(some, "gate")
    hard, _ = by_hand(some, "weight")
    u = n / slots
    assert u > float(TARGET)
    excess = math.log(u / 0.1)
    hesitation = sum(float((r.gate * (1 - r.gate)).double().sum()) / 3 for r in some if r is not None)
    layers = [float(r.gate.double().mean()) for r in some if r is not None]
    square = sum(math.log(layer / 0.1) ** 2 for layer in layers) / len(layers)
    want = {
        "per_gate": 0.3 * n,
        "mean_gate": 0.3 * u,
        "mean_hard_gate": 0.3 * hard / slots,
        "log_usage": 0.3 * excess + 2 * excess**2 + 0.7 * hesitation / n,
        "log_usage_by_layer": 0.3 * excess + 2 * square + 0.7 * hesitation / n,
    }
    assert set(want) == set(KINDS)
    for kind, value in want.items():
        have = penalty(some, kind, COST, QUADRATIC, TARGET, UNDECIDED)
        assert float(have) == pytest.approx(value, rel=200 * torch.finfo(torch.float32).eps)


def test_a_budget_pulls_towards_its_target_from_both_sides() -> None:
    for p, sign in ((0.05, -1), (0.2, 1)):
        gate = torch.full((2, 8, 1), p, requires_grad=True)
        made: list[Route | None] = [Route(gate=gate, weight=gate, taken=gate > 0)]
        value = penalty(made, LOG_USAGE, torch.tensor(0.0), QUADRATIC, TARGET, torch.tensor(0.0))
        (grad,) = torch.autograd.grad(value, [gate])
        assert bool((grad.sign() == sign).all())


def test_by_layer_an_open_layer_does_not_pay_for_a_closed_one() -> None:
    gates = [torch.full((2, 5, 1), value, requires_grad=True) for value in (0.19, 0.01, 0.1)]
    some: list[Route | None] = [Route(gate=gate, weight=gate, taken=gate > 0.5) for gate in gates]
    none = torch.tensor(0.0)
    together = penalty(some, LOG_USAGE, none, QUADRATIC, TARGET, none)
    apart = penalty(some, LOG_USAGE_BY_LAYER, none, QUADRATIC, TARGET, none)
    assert float(together.detach()) == pytest.approx(0.0, abs=8 * torch.finfo(torch.float32).eps)
    squares = [math.log(value / PRESSURE["target"]) ** 2 for value in (0.19, 0.01, 0.1)]
    want = PRESSURE["quadratic"] * sum(squares) / 3
    assert float(apart.detach()) == pytest.approx(want, rel=64 * torch.finfo(torch.float32).eps)
    pulls = [float(gate.sum()) for gate in torch.autograd.grad(apart, gates)]
    assert pulls[0] > 0 > pulls[1]


def test_a_gate_that_hesitates_is_pushed_to_the_side_it_leans_to() -> None:
    gate = torch.tensor([[[0.4], [0.6]]], requires_grad=True)
    made: list[Route | None] = [Route(gate=gate, weight=gate, taken=gate > 0.5)]
    value = penalty(made, LOG_USAGE, torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.5), UNDECIDED)
    (grad,) = torch.autograd.grad(value, [gate])
    assert grad[0, 0, 0] > 0 > grad[0, 1, 0]


def test_the_pressure_on_a_gate_is_the_cost_whatever_the_length_or_depth() -> None:
    for length, layers in ((4, 1), (400, 3)):
        gates = [torch.full((2, length, 1), 0.5, requires_grad=True) for _ in range(layers)]
        made = [Route(gate=g, weight=g, taken=g > 0) for g in gates]
        grads = torch.autograd.grad(penalty(made, "per_gate", COST, QUADRATIC, TARGET, UNDECIDED), gates)
        # A mean over the batch, as the task loss is.
        assert all(torch.allclose(grad, COST / 2) for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_routers_pays_nothing(kind: str) -> None:
    assert float(penalty([None, None], kind, COST, QUADRATIC, TARGET, UNDECIDED)) == 0
    assert float(penalty([], kind, COST, QUADRATIC, TARGET, UNDECIDED)) == 0


def grads_of(kind: str, router: str, **routing: Any) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The penalty of a model on random tokens, and its gradient on the routers' weights."""
    config = tiny(routing=RoutingConfig(router=router, **routing))
    model = CausalLM(config, vocab=23).train()
    for block in model.blocks:
        wake(block.mixer.router)
    tokens, hint = sequences()
    mode = RoutingMode(sample=True, generator=torch.Generator().manual_seed(0))
    out = model(tokens, mode=mode, hint=hint)
    value = penalty(out.routes, kind, COST, QUADRATIC, TARGET, UNDECIDED)
    if value.requires_grad:
        value.backward()
    return value, {name: p.grad for name, p in model.named_parameters() if ".router." in name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("router", ["linear", "mlp", "ema", "threshold"])
@pytest.mark.parametrize("gradient", ["straight_through", "scaled"])
def test_every_penalty_reaches_every_weight_of_a_learned_router(kind: str, router: str, gradient: str) -> None:
    value, grads = grads_of(kind, router, gradient=gradient)
    assert float(value.detach()) > 0 and grads
    for name, grad in grads.items():
        assert grad is not None and bool(grad.any()), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("router", ["always", "random:p=0.5", "periodic", "oracle", "frozen"])
def test_a_control_pays_a_constant(kind: str, router: str) -> None:
    value, grads = grads_of(kind, router)
    assert not value.requires_grad and float(value) > 0
    assert all(grad is None for grad in grads.values())


def test_a_step_against_the_penalty_closes_gates() -> None:
    config = tiny("linear")
    model = CausalLM(config, vocab=23)
    tokens, _ = sequences()
    before = penalty(model(tokens).routes, "per_gate", COST, QUADRATIC, TARGET, UNDECIDED)
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad
        after = penalty(model(tokens).routes, "per_gate", COST, QUADRATIC, TARGET, UNDECIDED)
    assert after < before


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"penalty 'per_gat'; did you mean 'per_gate'"):
        penalty(routes(1), "per_gat", COST, QUADRATIC, TARGET, UNDECIDED)
