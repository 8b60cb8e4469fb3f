"""The turnout at its ends and in between: route-all is attention, route-none is local, skipping is both tracks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from routing_laws import FixedRouter, assert_same, lively, local_tracks, routers, wake
from turnout.errors import ConfigError
from turnout.layers import AttentionMixer, LocalMixer, RoutedMixer
from turnout.layers.attention import AttentionTrack
from turnout.layers.local import LOCAL_TRACKS
from turnout.routers.gate_options import MIXES
from turnout.routers.mode import DENSE, SKIP, RoutingMode
from turnout.routers.query import QUERY_ROUTERS, Gating, QueryRouter, RouterContext

WIDTH, HEADS, KV_HEADS = 16, 4, 2
LAYOUTS = list(itertools.product((1, KV_HEADS), (False, True)))


def terms(length: int) -> int:
    """Sums along a mixer: projections, scores, softmax and average over T, the kernel of the local track."""
    return 6 * WIDTH + 3 * length


def tracks(*, rope: bool = False, local: str = "conv", seed: int = 0) -> tuple[Any, AttentionTrack]:
    """A local track and an attention track in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        track = LOCAL_TRACKS.build(lively(local), width=WIDTH, heads=HEADS).double()
        return track, AttentionTrack(WIDTH, HEADS, KV_HEADS, rope=rope, bias=True).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def router(name: str, groups: int = 1) -> QueryRouter:
    return QUERY_ROUTERS.build(name, context=RouterContext(width=WIDTH, groups=groups)).double()


@pytest.mark.parametrize(("groups", "rope"), LAYOUTS)
@pytest.mark.parametrize("length", [1, 13, 65])
def test_routing_every_token_is_dense_attention_with_the_same_weights(groups: int, rope: bool, length: int) -> None:
    local, attention = tracks(rope=rope)
    x = draw(2, length, WIDTH)
    want, _, _ = AttentionMixer(attention)(x, mode=SKIP)
    mixer = RoutedMixer(router("always", groups), local, attention)
    for mode in (SKIP, DENSE, RoutingMode(capacity=length), RoutingMode(capacity=length + 3)):
        have, route, _ = mixer(x, mode=mode)
        assert bool(route.taken.all())
        assert_same(have, want, terms=terms(length))


@pytest.mark.parametrize("groups", [1, KV_HEADS])
@pytest.mark.parametrize("local_name", local_tracks())
@pytest.mark.parametrize("mix", MIXES)
def test_routing_no_token_is_the_local_track_bit_for_bit(groups: int, local_name: str, mix: str) -> None:
    local, attention = tracks(local=local_name)
    x = draw(2, 13, WIDTH)
    want, _, _ = LocalMixer(local)(x, mode=SKIP)
    mixer = RoutedMixer(router("never", groups), local, attention, mix=mix)
    for mode in (SKIP, DENSE, RoutingMode(capacity=4)):
        assert torch.equal(mixer(x, mode=mode)[0], want)


def test_added_attention_is_the_sum_of_both_tracks() -> None:
    local, attention = tracks()
    x = draw(2, 13, WIDTH)
    want = LocalMixer(local)(x, mode=SKIP)[0] + AttentionMixer(attention)(x, mode=SKIP)[0]
    for mode in (SKIP, DENSE):
        mixer = RoutedMixer(router("always", KV_HEADS), local, attention, mix="add")
        assert_same(mixer(x, mode=mode)[0], want, terms=terms(13))


def gradients(mixer: RoutedMixer, x: Tensor, mode: RoutingMode) -> dict[str, Tensor]:
    """Output and the gradient of everything that produced it, pulled back from one fixed cotangent."""
    leaf = x.clone().requires_grad_()
    weight = mixer.router.route.weight
    weight.grad = None
    mixer.zero_grad(set_to_none=True)
    y, _, _ = mixer(leaf, mode=mode)
    y.backward(draw(*y.shape, seed=7))
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in mixer.named_parameters()}
    assert weight.grad is not None
    return {"output": y.detach(), "x": leaf.grad, "weight": weight.grad * mixer.router.route.taken, **grads}


@given(
    length=st.sampled_from([1, 7, 13, 33]),
    groups=st.sampled_from([1, KV_HEADS]),
    rope=st.booleans(),
    local=st.sampled_from(local_tracks()),
    mix=st.sampled_from(MIXES),
    open_fraction=st.sampled_from([0.02, 0.3, 0.8, 1.0]),
    spare=st.sampled_from([None, 0, 5]),
    hard=st.booleans(),
    absorbed=st.sampled_from([0, 3, 40]),
    dense_pays=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_skipping_is_both_tracks_at_the_same_gates_forward_and_every_gradient(
    length: int, groups: int, rope: bool, local: str, mix: str, open_fraction: float, spare: int | None,
    hard: bool, absorbed: int, dense_pays: bool, seed: int,
) -> None:  # fmt: skip
    track, attention = tracks(rope=rope, local=local)
    if groups == 1 and not rope:
        attention.absorbed_rows = lambda groups: absorbed  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(seed)
    taken = torch.rand(2, length, groups, generator=generator) < open_fraction
    # At least one row, so that both executions reach the weights of the attention track.
    taken[0, -1, 0] = True
    weight = torch.rand(2, length, groups, generator=generator, dtype=torch.float64)
    weight = (torch.ones_like(weight) if hard else weight).requires_grad_()
    mixer = RoutedMixer(FixedRouter(taken, weight), track, attention, mix=mix)
    # With a static capacity a device may find dense attention of all tokens faster; the result is the same.
    mixer._dense_pays = lambda x, mode: dense_pays and mode.capacity is not None  # type: ignore[method-assign]
    x = draw(2, length, WIDTH, seed=seed)
    capacity = None if spare is None else int(taken.sum(1).max()) + spare
    skip, both = gradients(mixer, x, RoutingMode(capacity=capacity)), gradients(mixer, x, DENSE)
    size = max(float(want.abs().max()) for want in both.values())
    for name, want in both.items():
        # A gradient of a weight also sums over the batch, the tokens and the width; that of the keys cancels to 0
        # where a row sees one key, and its terms are as large as other gradients.
        assert_same(skip[name], want, terms=terms(length) + 2 * 2 * length * WIDTH, size=size)


@pytest.mark.parametrize("groups", [1, KV_HEADS])
@pytest.mark.parametrize(("overflow", "dense_pays"), [("earliest", False), ("earliest", True), ("confident", False)])
def test_rows_past_the_capacity_stay_local_and_are_counted(groups: int, overflow: Any, dense_pays: bool) -> None:
    track, attention = tracks()
    generator = torch.Generator().manual_seed(3)
    taken = torch.rand(3, 13, groups, generator=generator) < 0.7
    gate = torch.rand(3, 13, groups, generator=generator, dtype=torch.float64)
    capacity = 4
    rank = gate if overflow == "confident" else -torch.arange(13.0, dtype=torch.float64)[None, :, None].expand_as(gate)
    best = rank.masked_fill(~taken, -99.0).topk(capacity, dim=1).indices
    kept = torch.zeros_like(taken).scatter(1, best, True) & taken
    ones = torch.ones_like(gate)
    x = draw(3, 13, WIDTH)
    want, _, _ = RoutedMixer(FixedRouter(kept, ones), track, attention)(x, mode=DENSE)
    mode = RoutingMode(capacity=capacity, overflow=overflow)
    mixer = RoutedMixer(FixedRouter(taken, ones, gate), track, attention)
    mixer._dense_pays = lambda x, mode: dense_pays  # type: ignore[method-assign]
    have, route, _ = mixer(x, mode=mode)
    assert_same(have, want, terms=terms(13))
    assert torch.equal(route.dropped, (taken.sum(1) - capacity).clamp(min=0))
    assert int(route.dropped.sum()) > 0


def test_a_capacity_that_must_suffice_is_an_error_that_says_how_much_is_needed() -> None:
    mixer = RoutedMixer(router("always"), *tracks())
    with pytest.raises(ConfigError, match=r"capacity=4 but a sequence has 13 rows.*raise the capacity to 13"):
        mixer(draw(1, 13, WIDTH), mode=RoutingMode(capacity=4, overflow="raise"))


@pytest.mark.parametrize("mode", [SKIP, DENSE, RoutingMode(capacity=3)])
def test_a_batch_without_any_open_gate_trains_the_local_track_and_has_no_nan(mode: RoutingMode) -> None:
    local, attention = tracks()
    x = draw(2, 13, WIDTH)
    grads = []
    for mixer in (RoutedMixer(router("never"), local, attention), LocalMixer(local)):
        leaf = x.clone().requires_grad_()
        mixer.zero_grad()
        mixer(leaf, mode=mode)[0].square().sum().backward()
        grads.append([leaf.grad, *(p.grad for p in local.parameters())])
    for have, want in zip(*grads, strict=True):
        assert have is not None and want is not None
        assert_same(have, want, terms=2 * 13 * WIDTH)
    assert all(p.grad is None or not bool(p.grad.any()) for p in attention.parameters())


def test_when_no_gate_is_open_no_query_is_computed_and_keys_are_kept_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_called(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("attention was computed")

    monkeypatch.setattr("turnout.layers.attention.attend", never_called)
    mixer = RoutedMixer(router("never"), *tracks())
    x = draw(2, 5, WIDTH)
    mixer(x, mode=SKIP)
    state = mixer.init_state(2, 5, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        mixer(x, mode=SKIP, state=state)
        k, v = mixer.attention.keys_values(x, None)
    assert state.cache.length == 5
    assert torch.equal(state.cache.k, k) and torch.equal(state.cache.v, v)


@pytest.mark.parametrize("mode", [SKIP, DENSE, RoutingMode(capacity=13)])
@pytest.mark.parametrize("gradient", ["straight_through", "scaled"])
def test_an_open_gate_gets_the_gradient_of_what_it_opens(mode: RoutingMode, gradient: str) -> None:
    context = RouterContext(width=WIDTH, gating=Gating(gradient=gradient))
    learned = QUERY_ROUTERS.build("linear:bias=0.0", context=context).double()
    wake(learned)
    mixer = RoutedMixer(learned, *tracks())
    mixer(draw(2, 13, WIDTH), mode=mode)[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in mixer.parameters())


@pytest.mark.parametrize("groups", [1, KV_HEADS])
def test_half_precision_skips_as_exactly_as_it_runs_both_tracks(groups: int) -> None:
    track, attention = tracks()
    taken = torch.rand(2, 33, groups, generator=torch.Generator().manual_seed(0)) < 0.4
    mixer = RoutedMixer(FixedRouter(taken, torch.ones(2, 33, groups)), track.float(), attention.float())
    x = draw(2, 33, WIDTH).float()
    with torch.no_grad():
        exact = mixer.double()(x.double(), mode=DENSE)[0]
        with torch.autocast("cpu", torch.bfloat16):
            both, skip = (mixer.float()(x, mode=mode)[0].double() for mode in (DENSE, SKIP))
    slack = math.sqrt(terms(33)) * torch.finfo(torch.bfloat16).eps * float(exact.abs().max())
    for measure in (torch.max, torch.mean):
        assert measure((skip - exact).abs()) <= measure((both - exact).abs()) + slack


def count(mixer: RoutedMixer, mode: RoutingMode, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """What torch counts in one sequence of 13 tokens, and what the mixer says, both without scores and averages.

    Torch counts a causal score matrix as if it were full, so attention itself is left out of both.
    """

    def no_scores(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return q

    monkeypatch.setattr("turnout.layers.attention.attend", no_scores)
    # Torch does not count sums of shifted copies.
    monkeypatch.setattr("turnout.ops.conv.SHIFTED_TAPS", 0)
    # Its blocks are products of matrices here, 3 operations a number in any other implementation.
    monkeypatch.setattr("turnout.routers.query.ema.causal_ema", lambda x, decay, state: (x, state))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, route, _ = mixer(draw(1, 13, WIDTH), mode=mode, hint=torch.zeros(1, 13, dtype=torch.bool))
    rows = float(route.taken.sum(1).double().mean()) if mode.skip else 13
    absorbed = min(rows, mixer.attention.absorbed_rows(mixer.groups)) if mode.skip else 0
    scores = ((rows - absorbed) + absorbed * HEADS) * 4 * WIDTH * (13 + 1) / 2
    return counter.get_total_flops(), mixer.flops(13, rows / 13, skip=mode.skip) - scores


@pytest.mark.parametrize("name", [name for name in routers() if name != "shuffled"])
@pytest.mark.parametrize("groups", [1, KV_HEADS])
def test_counted_operations_of_every_router_are_those_that_torch_counts(
    name: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = replace(DENSE, tokens=torch.arange(13)[None] % 4)
    counted, said = count(RoutedMixer(router(name, groups), *tracks()), mode, monkeypatch)
    assert counted == said


@pytest.mark.parametrize("groups", [1, KV_HEADS])
@pytest.mark.parametrize("n_rows", [1, 5, 13])
@pytest.mark.parametrize("absorbed", [0, 3, 40])
def test_skipping_pays_for_the_rows_taken_only(
    groups: int, n_rows: int, absorbed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = (torch.arange(13) < n_rows)[None, :, None].expand(1, 13, groups)
    mixer = RoutedMixer(FixedRouter(taken, torch.ones(1, 13, groups)), *tracks())
    if groups == 1:
        monkeypatch.setattr(mixer.attention, "absorbed_rows", lambda groups: absorbed)
    counted, said = count(mixer, SKIP, monkeypatch)
    assert counted == said


@pytest.mark.parametrize("later", [0, 10, 11, 100])
def test_rows_that_come_later_do_not_change_how_earlier_ones_attend_by_one_bit(later: int) -> None:
    attention = AttentionTrack(256, 4, 4, rope=False, bias=True)
    assert attention.absorbed_rows(1) == 32
    local = LOCAL_TRACKS.build("conv:kernel=4", width=256, heads=4)
    x = torch.randn(1, 200, 256, generator=torch.Generator().manual_seed(0))
    outputs = []
    for n_later in (0, later):
        taken = torch.zeros(1, 200, 1, dtype=torch.bool)
        taken[:, 10:32], taken[:, 100 : 100 + n_later] = True, True
        mixer = RoutedMixer(FixedRouter(taken, taken.float()), local, attention)
        with torch.no_grad():
            outputs.append(mixer(x, mode=SKIP)[0][:, :100])
    assert torch.equal(*outputs)


def test_a_router_for_another_number_of_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router with 4 groups beside attention with 2 kv heads.*groups=2"):
        RoutedMixer(router("always", 4), *tracks())


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix='ad'; did you mean 'add'"):
        RoutedMixer(router("always"), *tracks(), mix="ad")
