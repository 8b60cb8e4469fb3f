"""Controls decide without learning: the asked usage, in training and evaluation, step by step as in the whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QUERY_ROUTERS, QueryRouter, RouterContext

WIDTH = 4


def build(spec: str, **context: Any) -> QueryRouter:
    return QUERY_ROUTERS.build(spec, context=RouterContext(width=WIDTH, **context))


def decide(router: QueryRouter, batch: int, length: int, **options: Any) -> Tensor:
    mode = options.pop("mode", RoutingMode())
    return router(torch.zeros(batch, length, WIDTH), mode=mode, **options)[0].taken


def sampling(seed: int = 0) -> RoutingMode:
    return RoutingMode(sample=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [0.01, 0.0625, 0.5, 0.97])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("groups", [1, 4])
def test_random_takes_the_fraction_asked_for_in_training_and_evaluation(p: float, mode: str, groups: int) -> None:
    taken = decide(
        build(f"random:p={p}", groups=groups), 16, 1024, mode=sampling() if mode == "train" else RoutingMode()
    )
    # Hoeffding: further off once in 1e9 draws of the generator.
    bound = math.sqrt(math.log(2e9) / (2 * taken.numel()))
    assert abs(float(taken.double().mean()) - p) <= bound
    # No row, position or group is favoured: each is a mean of fewer draws, of which there are many.
    for axis in range(3):
        means = taken.double().movedim(axis, 0).flatten(1).mean(1)
        n = taken.numel() // len(means)
        assert float((means - p).abs().max()) <= math.sqrt(math.log(2e9 * len(means)) / (2 * n))


def test_random_ends_of_the_range_are_never_and_always() -> None:
    for mode in (sampling(), RoutingMode()):
        assert not bool(decide(build("random:p=0.0"), 2, 50, mode=mode).any())
        assert bool(decide(build("random:p=1.0"), 2, 50, mode=mode).all())


def test_random_gates_differ_between_seeds_layers_rows_and_groups_and_repeat_in_evaluation() -> None:
    base = decide(build("random:p=0.5", groups=2), 4, 256)
    assert torch.equal(base, decide(build("random:p=0.5", groups=2), 4, 256))
    others = [
        decide(build("random:p=0.5", groups=2, seed=1), 4, 256),
        decide(build("random:p=0.5", groups=2, layer=1), 4, 256),
        base.roll(1, 0),
        base.flip(2),
    ]
    for other in others:
        # Independent fair coins agree on half of the slots.
        bound = math.sqrt(math.log(2e9) / (2 * base.numel()))
        assert abs(float((base == other).double().mean()) - 0.5) <= bound
    fresh = sampling()
    drawn = [decide(build("random:p=0.5"), 4, 256, mode=fresh) for _ in range(2)]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(("spec", "period", "offset"), [("periodic", 16, 0), ("periodic:period=5,offset=3", 5, 3)])
def test_periodic_takes_every_nth_token_from_its_offset(spec: str, period: int, offset: int) -> None:
    router = build(spec, groups=2)
    want = (torch.arange(64) % period == offset)[None, :, None].expand(3, 64, 2)
    assert torch.equal(decide(router, 3, 64), want)
    state = router.init_state(3, device=torch.device("cpu"), dtype=torch.float32)
    parts = []
    for size in (1, 30, 33):
        route, state = router(torch.zeros(3, size, WIDTH), mode=RoutingMode(), state=state)
        parts.append(route.taken)
    assert torch.equal(torch.cat(parts, 1), want)


@pytest.mark.parametrize(("period", "offset"), [(1.0, 0.0), (1.5, 0.0), (1.5625, 0.5), (7.25, 5.75)])
def test_periodic_takes_one_token_in_each_period_that_is_no_whole_number(period: float, offset: float) -> None:
    taken = decide(build(f"periodic:period={period},offset={offset}"), 1, 1000)[0, :, 0]
    at = taken.nonzero()[:, 0].double()
    nth = torch.arange(len(at)).double() + math.floor((float(at[0]) - offset) / period)
    behind = at - (offset + nth * period)
    assert bool(((behind >= 0) & (behind < 1)).all())
    assert abs(len(at) - 1000 / period) <= 1


def test_always_and_never() -> None:
    assert bool(decide(build("always", groups=2), 2, 7).all())
    assert not bool(decide(build("never", groups=2), 2, 7).any())


def test_the_oracle_takes_what_the_hint_marks_in_its_layer() -> None:
    hint = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(decide(build("oracle", groups=2), 2, 3, hint=hint), hint[..., None].expand(2, 3, 2))
    for layer in range(2):
        taken = decide(build("oracle:layer=1", layer=layer, layers=2), 2, 3, hint=hint)
        assert torch.equal(taken[..., 0], hint & (layer == 1))


def test_the_oracle_without_a_hint_says_where_hints_come_from() -> None:
    with pytest.raises(ConfigError, match=r"oracle got no hint; expected bool \[B, T\].*recall"):
        decide(build("oracle"), 2, 3)


def test_the_oracle_refuses_a_hint_for_other_tokens() -> None:
    with pytest.raises(ShapeError, match=r"hint \(2, 4\); expected \[B, T\] = \(2, 3\)"):
        decide(build("oracle"), 2, 3, hint=torch.zeros(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("layer", [-2, 4])
def test_the_oracle_refuses_a_layer_that_the_model_lacks(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"oracle: layer={layer}; expected 0..3, or -1"):
        build(f"oracle:layer={layer}", layers=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:p=1.5", r"p=1.5; expected 0 <= p <= 1"),
        ("random:p=-0.1", r"p=-0.1; expected"),
        ("periodic:period=0", r"period=0, offset=0; expected period >= 1"),
        ("periodic:period=4,offset=4", r"offset=4; expected period >= 1 and 0 <= offset < period"),
        ("periodic:period=4,offset=-1", r"offset=-1; expected"),
    ],
)
def test_impossible_options_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(spec)


def test_shuffled_hands_each_sequence_the_decisions_of_another() -> None:
    router = build("shuffled:inner=linear", groups=2).double()
    x = torch.randn(3, 20, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, _ = router.inner(x, mode=RoutingMode())
    given, _ = router(x, mode=RoutingMode())
    for part in ("gate", "weight", "taken"):
        assert torch.equal(getattr(given, part), getattr(own, part).roll(1, 0))
    assert given.taken.sum() == own.taken.sum()


def test_shuffled_needs_another_sequence() -> None:
    with pytest.raises(UnsupportedError, match="batch of 1; expected >= 2 sequences"):
        decide(build("shuffled"), 1, 3)


def test_shuffled_is_as_causal_and_as_much_in_need_of_a_hint_as_what_it_shuffles() -> None:
    assert build("shuffled").causal and not build("shuffled").needs_hint
    leaky = build("shuffled:inner=expert_choice")
    assert not leaky.causal and leaky.causal_variant == "shuffled:inner=threshold"
    assert QUERY_ROUTERS.build(leaky.causal_variant, context=RouterContext(width=WIDTH)).causal
    assert build("shuffled:inner=oracle").needs_hint


def test_controls_say_that_they_do_not_learn() -> None:
    for name in ("always", "never", "random", "periodic", "oracle", "shuffled", "frozen"):
        assert not QUERY_ROUTERS.get(name).learned
    for name in ("linear", "mlp", "ema", "threshold"):
        assert QUERY_ROUTERS.get(name).learned
