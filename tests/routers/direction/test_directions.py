"""Laws of direction routers inside models: nothing removed is nothing changed, steps are the whole, causality."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from routing_laws import LENGTH, VOCAB, assert_same, awake, in_pieces, sequences, terms_of, tiny
from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.layers import AttentionMixer
from turnout.models import CausalLM, DecodeStep, ModelConfig
from turnout.models.testbed import TestBed
from turnout.models.testbed_config import TestBedConfig
from turnout.probe.causality import certify
from turnout.routers.direction import DIRECTION_ROUTERS, DirectionContext, DirectionRouter
from turnout.routers.mode import DENSE, SKIP, RoutingMode

CAUSAL = [name for name in DIRECTION_ROUTERS.names() if DIRECTION_ROUTERS.get(name).causal]
LEAKING = [name for name in DIRECTION_ROUTERS.names() if name not in CAUSAL]
HIDDEN = {"prefix": "hidden=8", "token": "hidden=8", "sequence": "hidden=8,leak=true"}


def spec(name: str, more: str = "k=2") -> str:
    return f"{name}:" + ",".join(part for part in (HIDDEN.get(name, ""), more) if part)


def directed(name: str, more: str = "k=2", **changes: Any) -> CausalLM:
    """A float64 model whose routers decide differently for different inputs."""
    model = awake(tiny(directions=spec(name, more), **{"positions": "rope", **changes}))
    for router in routers_of(model):
        generator = torch.Generator().manual_seed(router.context.layer)
        for p in router.parameters():
            if p is not router.vectors:
                p.data = torch.randn(p.shape, generator=generator).to(p)
    return model


def routers_of(model: CausalLM) -> list[DirectionRouter]:
    return [m for m in model.modules() if isinstance(m, DirectionRouter)]


def build(name: str, more: str = "k=2", **context: Any) -> DirectionRouter:
    return DIRECTION_ROUTERS.build(
        spec(name, more), context=DirectionContext(**{"width": 16, "heads": 4, "head_dim": 4, **context})
    ).double()


@pytest.mark.parametrize("layout", ["A", "R"])
@pytest.mark.parametrize("name", DIRECTION_ROUTERS.names())
def test_removing_nothing_changes_nothing(name: str, layout: str) -> None:
    model = directed(name, layout=layout)
    plain = awake(tiny(layout=layout, positions="rope"))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".directions." not in k})
    tokens, hint = sequences()
    with torch.no_grad():
        want = plain(tokens, hint=hint).logits
        assert not torch.equal(model(tokens, hint=hint).logits, want)
        for router in routers_of(model):
            router.register_forward_hook(lambda module, args, out: (out[0] * 0, out[1]))
        for mode in (SKIP, DENSE):
            assert_same(model(tokens, hint=hint, mode=mode).logits, want, terms=terms_of(model.config))


@pytest.mark.parametrize("layout", ["A", "R"])
def test_the_cut_is_the_published_equation(layout: str) -> None:
    model = directed("token", layout=layout, routing=tiny("always").routing, local="conv:kernel=4")
    attention, x = model.blocks[0].mixer.attention, torch.randn(2, 7, 16, dtype=torch.float64)
    with torch.no_grad():
        raw = attention.whole(x, *attention.keys_values(x, None), impl="reference")
        r, _ = attention.directions(x)
        want = raw.clone()
        for b, t, h, k in torch.cartesian_prod(*map(torch.arange, r.shape)).tolist():
            d = attention.directions.vectors[h, k] / attention.directions.vectors[h, k].norm()
            want[b, t, h] -= r[b, t, h, k] * (raw[b, t, h] @ d) * d
        have = AttentionMixer(attention)(x, mode=SKIP)[0]
    assert_same(have, attention.out(want.flatten(2)), terms=6 * 16 + 3 * 7)


@pytest.mark.parametrize("granularity", ["token", "group"])
@pytest.mark.parametrize("layout", ["A", "R"])
@pytest.mark.parametrize("name", CAUSAL)
def test_steps_and_segments_are_the_whole_sequence(name: str, layout: str, granularity: str) -> None:
    model = directed(name, layout=layout, routing=tiny(granularity=granularity).routing, output_gate="head")
    tokens, hint = sequences()
    with torch.no_grad():
        whole = model(tokens, hint=hint).logits
    for sizes, mode in (([1] * LENGTH, SKIP), ([5, 1, 7], SKIP), ([6, 1, 1, 5], DENSE)):
        logits, _ = in_pieces(model, tokens, hint, sizes, mode)
        assert_same(logits, whole, terms=2 * terms_of(model.config))


@pytest.mark.parametrize("pattern", ["window:size=4", "alibi", "top_blocks:block=2,keep=2"])
@pytest.mark.parametrize("layout", ["A", "R"])
def test_directions_go_with_patterns(layout: str, pattern: str) -> None:
    model = directed("prefix", layout=layout, pattern=pattern)
    tokens, hint = sequences()
    with torch.no_grad():
        whole = model(tokens, hint=hint).logits
        logits, _ = in_pieces(model, tokens, hint, [1] * LENGTH)
        assert_same(logits, whole, terms=2 * terms_of(model.config))
        for router in routers_of(model):
            router.register_forward_hook(lambda module, args, out: (out[0] * 0, out[1]))
        none = model(tokens, hint=hint).logits
    plain = awake(tiny(layout=layout, pattern=pattern, positions="rope"))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".directions." not in k})
    assert_same(none, plain(tokens, hint=hint).logits.detach(), terms=terms_of(model.config))
    assert not torch.equal(none, whole)


@pytest.mark.parametrize("positions", ["none", "rope"])
@pytest.mark.parametrize("granularity", ["token", "group"])
@pytest.mark.parametrize("name", DIRECTION_ROUTERS.names())
def test_skipping_computes_what_both_tracks_compute(name: str, granularity: str, positions: str) -> None:
    """Few rows at 40 tokens: the absorbed path, the gathered one and the dense one remove the same."""
    model = directed(name, positions=positions, routing=tiny(granularity=granularity).routing, output_gate="element")
    tokens, _ = sequences(2, 40)
    with torch.no_grad():
        dense = model(tokens, mode=DENSE).logits
        for mode in (SKIP, RoutingMode(capacity=40)):
            assert_same(model(tokens, mode=mode).logits, dense, terms=2 * terms_of(model.config, 40))


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_on_the_device_are_the_whole_sequence(name: str) -> None:
    model = directed(name, layout="RA")
    tokens, _ = sequences()
    state = model.init_state(len(tokens), LENGTH)
    with torch.no_grad():
        whole = model(tokens).logits
        model(tokens[:, :4], state=state)
    step = DecodeStep(model, state)
    for t in range(4, LENGTH):
        assert_same(step(tokens[:, t : t + 1]).logits[:, 0], whole[:, t], terms=2 * terms_of(model.config))


@pytest.mark.parametrize("layout", ["A", "R", "LA"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_direction_routers_are_certified(name: str, layout: str) -> None:
    certificate = certify(directed(name, layout=layout), length=15, positions=4)
    assert certificate.causal, certificate


@pytest.mark.parametrize("layout", ["A", "R"])
@pytest.mark.parametrize("name", LEAKING)
def test_the_published_router_is_caught_and_named(name: str, layout: str) -> None:
    certificate = certify(directed(name, layout=layout), length=15)
    assert not certificate.causal
    assert certificate.leaks[0].where == "blocks.0.mixer.attention.directions"
    assert any(leak.where == "logits" for leak in certificate.leaks)


def test_a_causal_model_refuses_the_published_router_and_names_the_causal_one() -> None:
    with pytest.raises(ConfigError, match=r"not causal.*'prefix'.*sequence:leak=true"):
        CausalLM(tiny(directions="sequence"), vocab=VOCAB)


def test_the_published_router_refuses_a_cache_unless_it_may_be_stale() -> None:
    with pytest.raises(UnsupportedError, match="cannot decode with a cache"):
        directed("sequence").init_state(2, LENGTH)
    model = directed("sequence", "k=2,stale=true", layout="A")
    tokens, hint = sequences()
    with torch.no_grad():
        whole = model(tokens).logits
    at_once, _ = in_pieces(model, tokens, hint, [LENGTH])
    stepped, _ = in_pieces(model, tokens, hint, [1] * LENGTH)
    assert_same(at_once, whole, terms=terms_of(model.config))
    assert not torch.allclose(stepped, whole)


OTHER_OPTIONS = {
    "prefix": ["k=3", "hidden=9", "depth=3", "temperature=4", "source=normed"],
    "token": ["k=3", "hidden=9", "depth=3", "temperature=4", "source=normed"],
    "sequence": ["k=3", "hidden=9", "depth=3", "temperature=4", "source=normed"],
    "static": ["k=3", "temperature=4"],
    "random": ["k=3", "learn=false"],
}
# Permissions: what they permit is tested above.
PERMISSIONS = {"leak", "stale"}


def outcome(name: str, option: str) -> tuple[Tensor, bool]:
    given = dict(part.split("=") for part in (HIDDEN.get(name, ""), "k=2", option) for part in part.split(",") if part)
    text = f"{name}:" + ",".join(f"{key}={value}" for key, value in given.items())
    config = tiny(layout="A", form="llama", directions=text)
    model = CausalLM(config, vocab=VOCAB)
    for router in routers_of(model):
        if hasattr(router, "logit"):
            router.logit.data += 0.3
    logits = model(sequences()[0]).logits
    return logits.detach(), all(r.vectors.requires_grad for r in routers_of(model))


@pytest.mark.parametrize("name", DIRECTION_ROUTERS.names())
def test_every_option_changes_the_model(name: str) -> None:
    assert {o.partition("=")[0] for o in OTHER_OPTIONS[name]} | PERMISSIONS >= set(DIRECTION_ROUTERS.options(name))
    logits, learns = outcome(name, "")
    for option in OTHER_OPTIONS[name]:
        other, learns_now = outcome(name, option)
        assert learns_now is not learns or not torch.equal(other, logits), option


@pytest.mark.parametrize("name", DIRECTION_ROUTERS.names())
def test_training_reaches_every_learned_weight(name: str) -> None:
    model = CausalLM(tiny(layout="A", directions=spec(name)), vocab=VOCAB)
    model(sequences()[0]).logits.square().mean().backward()
    for router in routers_of(model):
        assert all(p.grad is not None and bool(p.grad.any()) for p in router.parameters()), name


def test_the_random_control_differs_by_layer_and_seed_and_stays_as_it_was() -> None:
    one, same, seed, layer = (build("random", **c) for c in ({}, {}, {"seed": 1}, {"layer": 1}))
    assert torch.equal(one.fixed, same.fixed)
    assert not torch.equal(one.fixed, seed.fixed) and not torch.equal(one.fixed, layer.fixed)
    assert "fixed" not in dict(one.named_parameters())


@pytest.mark.parametrize("name", ["static", "random"])
def test_controls_decide_the_same_for_every_input(name: str) -> None:
    router = build(name)
    r, _ = router(torch.randn(3, 5, 16, dtype=torch.float64))
    assert r.shape == (3, 5, 4, 2) and torch.equal(r, r[:1, :1].expand_as(r))


def test_the_prefix_router_at_the_last_token_is_the_sequence_router() -> None:
    prefix, sequence = build("prefix"), build("sequence")
    sequence.load_state_dict(prefix.state_dict())
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert_same(prefix(x)[0][:, -1], sequence(x)[0][:, -1], terms=9 + 3 * 16)


def test_a_long_prefix_in_half_precision_is_averaged_in_float32() -> None:
    router = build("prefix").bfloat16()
    x = torch.ones(1, 4096, 16, dtype=torch.bfloat16)
    assert torch.equal(router.pool(x, None)[0], x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token:k=0", "k=0 directions a head; expected 1 <= k <= head dim = 4"),
        ("token:k=5", "k=5 directions a head; expected 1 <= k <= head dim = 4"),
        ("token:hidden=0", "hidden=0"),
        ("token:depth=0", "depth=0"),
        ("prefix:temperature=0", "temperature=0"),
        ("static:temperature=-1", "temperature=-1"),
        ("prefix:source=norm", "did you mean 'normed'"),
        ("prefx", "unknown direction router 'prefx'; did you mean 'prefix'"),
        ("static:hidden=3", "no option 'hidden'"),
    ],
)
def test_nonsense_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CausalLM(tiny(directions=text), vocab=VOCAB)


def test_a_zero_direction_is_refused() -> None:
    model = directed("static")
    model.blocks[1].mixer.attention.directions.vectors.data[0, 0] = 0
    with pytest.raises(ShapeError, match=r"layer 1 have lengths 0\.\..*a zero vector has no direction"):
        model(sequences()[0])


def test_a_nan_is_found_where_it_enters() -> None:
    model = directed("token", layout="A")
    model.blocks[1].mixer.attention.directions.net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ShapeError, match="r of layer 1 holds NaN"):
        model(sequences()[0])


def test_directions_may_be_replaced_by_unit_vectors_of_the_same_shape() -> None:
    router = build("static")
    unit = torch.nn.functional.normalize(torch.randn(4, 2, 4, dtype=torch.float64), dim=-1)
    router.set_directions(unit)
    assert_same(router.unit(), unit, terms=4)
    router.set_directions(unit.bfloat16())
    for bad in (unit * 1.01, unit * 0):
        with pytest.raises(ShapeError, match=r"expected 1: use torch\.nn\.functional\.normalize"):
            router.set_directions(bad)
    with pytest.raises(ShapeError, match=r"\[4, 1, 4\]; expected \[H, K, D\] = \[4, 2, 4\]"):
        router.set_directions(unit[:, :1])


@pytest.mark.parametrize("name", DIRECTION_ROUTERS.names())
def test_directions_go_with_content_routing(name: str) -> None:
    tokens, at = torch.randint(VOCAB, (3, 12)), torch.tensor([[5, 11]] * 3)
    beds = {
        text: TestBed(TestBedConfig(width=16, heads=4, k=2, directions=text), vocab=VOCAB, length=12).double()
        for text in ("none", spec(name))
    }
    with torch.no_grad():
        plain, cut = beds["none"](tokens, at)[1], beds[spec(name)](tokens, at)[1]
        assert not torch.equal(plain, cut)
        beds[spec(name)].council.directions.register_forward_hook(lambda m, args, out: (out[0] * 0, out[1]))
        other = beds[spec(name)]
        other.load_state_dict({**other.state_dict(), **beds["none"].state_dict()})
        assert_same(other(tokens, at)[1], plain, terms=200)


def test_a_stacked_test_bed_may_have_directions() -> None:
    config = TestBedConfig(width=16, heads=4, k=2, directions="token:k=2,hidden=8")
    beds = [TestBed(config, vocab=VOCAB, length=12, seed=i) for i in range(2)]
    params, buffers = torch.func.stack_module_state(beds)
    tokens, at = torch.randint(VOCAB, (3, 12)), torch.tensor([[5, 11]] * 3)

    def call(p: Any, b: Any) -> Tensor:
        return torch.func.functional_call(beds[0], (p, b), (tokens, at))[1]

    assert torch.func.vmap(call, randomness="same")(params, buffers).shape == (2, 3, 2, VOCAB)


def test_counted_operations_include_the_router_and_the_products() -> None:
    config = ModelConfig(layers=1, width=16, heads=4, layout="A")
    flops = {
        name: CausalLM(replace(config, directions=spec(name) if name else "none"), vocab=VOCAB).block_flops(10, [1.0])
        for name in ("", "static", "sequence", "token")
    }
    assert flops["static"] - flops[""] == 4 * 10 * 4 * 2 * 4
    mlp = 2 * (16 * 8 + 8 * 8 + 8 * 8 + 8 * 8)
    assert flops["sequence"] - flops["static"] == mlp
    assert flops["token"] - flops["static"] == 10 * mlp
