"""Laws of the whole model: one step, a segment and the whole sequence are one function, decisions included."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from routing_laws import (
    BY_ROW,
    LENGTH,
    VOCAB,
    assert_same,
    awake,
    decisions,
    in_pieces,
    local_tracks,
    routers,
    sequences,
    terms_of,
    tiny,
)
from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.models.config import GRANULARITIES, POSITIONS
from turnout.probe.causality import certify
from turnout.routers.gate_options import MIXES
from turnout.routers.mode import DENSE, SKIP, RoutingMode

EVERY_ROUTER = list(itertools.product(routers(), GRANULARITIES, POSITIONS, local_tracks()))


def build(router: str, granularity: str, positions: str, local: str) -> CausalLM:
    return awake(tiny(router, granularity=granularity, local=local, positions=positions))


@pytest.mark.parametrize(("router", "granularity", "positions", "local"), EVERY_ROUTER)
def test_step_by_step_and_in_segments_equal_the_whole_sequence_decisions_included(
    router: str, granularity: str, positions: str, local: str
) -> None:
    model = build(router, granularity, positions, local)
    tokens, hint = sequences()
    with torch.no_grad():
        whole = model(tokens, hint=hint)
    for sizes, mode in (([1] * LENGTH, SKIP), ([5, 1, 7], SKIP), ([6, 1, 1, 5], DENSE)):
        logits, taken = in_pieces(model, tokens, hint, sizes, mode)
        assert all(map(torch.equal, taken, decisions(whole)))
        assert_same(logits, whole.logits, terms=terms_of(model.config))


@pytest.mark.parametrize(("router", "granularity", "positions", "local"), EVERY_ROUTER)
def test_every_causal_router_is_certified(router: str, granularity: str, positions: str, local: str) -> None:
    certificate = certify(build(router, granularity, positions, local), length=LENGTH, positions=4)
    assert certificate.causal, certificate


@pytest.mark.parametrize("router", routers())
def test_the_laws_are_tested_on_routers_that_decide_both_ways(router: str) -> None:
    tokens, hint = sequences()
    with torch.no_grad():
        taken = torch.stack(decisions(awake(tiny(router))(tokens, hint=hint))).float().mean()
    if router == "always":
        assert taken == 1
    elif router == "never":
        assert taken == 0
    else:
        assert 0 < taken < 1, f"give {router!r} livelier options in routing_laws.LIVELY"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("router", [name for name in routers() if name not in BY_ROW])
def test_a_sequence_does_not_depend_on_the_others_in_its_batch(router: str, granularity: str) -> None:
    model = awake(tiny(router, granularity=granularity, local="window"))
    tokens, hint = sequences(4)
    with torch.no_grad():
        batch = model(tokens, hint=hint)
        for pick in ([2], [3, 1]):
            alone = model(tokens[pick], hint=hint[pick])
            assert all(torch.equal(a, b[pick]) for a, b in zip(decisions(alone), decisions(batch), strict=True))
            assert_same(alone.logits, batch.logits[pick], terms=terms_of(model.config))


def test_the_random_router_depends_on_the_row_of_the_batch_and_on_nothing_else() -> None:
    model = awake(tiny("random"))
    tokens, _ = sequences(3)
    with torch.no_grad():
        first, other = decisions(model(tokens)), decisions(model((tokens + 1) % VOCAB))
        fewer = decisions(model(tokens[:2]))
    assert all(map(torch.equal, first, other))
    assert all(torch.equal(a, b[:2]) for a, b in zip(fewer, first, strict=True))
    assert not torch.equal(first[0][0], first[0][1])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("layout", ["A", "L", "RAL", "ALR"])
def test_layouts_without_or_with_few_routers_obey_the_same_laws(layout: str, mix: str) -> None:
    routing = RoutingConfig(router="ema", mix=mix, gradient="scaled")
    model = awake(tiny(layers=3, layout=layout, positions="rope", routing=routing))
    tokens, hint = sequences()
    with torch.no_grad():
        whole = model(tokens)
    logits, taken = in_pieces(model, tokens, hint, [4, 1, 8])
    assert len(taken) == layout.count("R") == sum(route is not None for route in whole.routes)
    assert_same(logits, whole.logits, terms=terms_of(model.config))
    assert certify(model, length=LENGTH, positions=4).causal


@pytest.mark.parametrize("form", ["gpt", "llama"])
@pytest.mark.parametrize("length", [1, 2, 65])
def test_lengths_at_the_edges_of_chunks_obey_the_step_law(form: str, length: int) -> None:
    model = awake(tiny("linear", form=form, tie=form == "llama", local="window"))
    tokens, hint = sequences(2, length)
    with torch.no_grad():
        whole = model(tokens)
    logits, taken = in_pieces(model, tokens, hint, [1] * length)
    assert all(map(torch.equal, taken, decisions(whole)))
    assert_same(logits, whole.logits, terms=terms_of(model.config, length))


def test_logits_are_made_only_at_the_positions_asked_for() -> None:
    model = awake(tiny())
    tokens, _ = sequences()
    at = torch.tensor([[0, 7], [12, -1], [3, 3]])
    with torch.no_grad():
        whole, some = model(tokens).logits, model(tokens, at=at).logits
    assert some.shape == (3, 2, VOCAB)
    for b, q in itertools.product(range(3), range(2)):
        assert_same(some[b, q], whole[b, max(0, int(at[b, q]))], terms=terms_of(model.config))


@pytest.mark.parametrize("router", routers(causal=False))
def test_a_causal_model_refuses_a_router_that_is_not_causal_and_names_one_that_is(router: str) -> None:
    for spec in (router, f"shuffled:inner={router}"):
        with pytest.raises(ConfigError, match=r"not causal.*threshold"):
            CausalLM(ModelConfig(routing=RoutingConfig(router=spec)), vocab=VOCAB)


def test_the_published_model_has_exactly_its_parameter_count() -> None:
    config = ModelConfig(
        layers=4, width=128, heads=4, local="conv:kernel=64,form=softmax", routing=RoutingConfig(router="ema"),
        positions="none", form="gpt",
    )  # fmt: skip
    assert sum(p.numel() for p in CausalLM(config, vocab=256).parameters()) == 1_124_872


def test_a_seed_gives_the_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (CausalLM(tiny(), vocab=VOCAB, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_a_tied_head_is_the_embedding() -> None:
    model = CausalLM(tiny(tie=True), vocab=VOCAB)
    assert model.head.weight is model.embed.weight


def test_a_full_state_refuses_more_tokens_and_stays_usable() -> None:
    model = awake(tiny("ema", local="window"))
    tokens, _ = sequences(2, 5)
    with torch.no_grad():
        state = model.init_state(2, 5)
        model(tokens[:, :4], state=state)
        with pytest.raises(ShapeError, match=r"holds 5 tokens, got 6.*max_len >= 6"):
            model(tokens[:, 3:], state=state)
        last = model(tokens[:, 4:], state=state).logits
        assert_same(last, model(tokens).logits[:, 4:], terms=terms_of(model.config))
        with pytest.raises(ShapeError, match="holds 5 tokens, got 6"):
            model(tokens[:, :1], state=state)


def test_a_state_of_another_batch_or_model_is_refused() -> None:
    model, deeper = awake(tiny()), awake(tiny(layers=3))
    tokens, _ = sequences(1)
    with torch.no_grad():
        with pytest.raises(ShapeError, match="for 3 sequences, got 1"):
            model(tokens, state=model.init_state(3, LENGTH))
        with pytest.raises(ShapeError, match="state of 3 layers; expected 2"):
            model(tokens, state=deeper.init_state(1, LENGTH))


def test_decoding_that_autograd_tracks_is_refused() -> None:
    model = awake(tiny())
    tokens, _ = sequences(1)
    with pytest.raises(UnsupportedError, match="no_grad"):
        model(tokens, state=model.init_state(1, LENGTH))


def test_tokens_that_are_not_a_batch_of_sequences_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(5,\); expected \[batch, length\]"):
        awake(tiny())(torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_tokens_of_another_tokenizer_are_refused(token: int) -> None:
    with pytest.raises(ShapeError, match="another tokenizer"):
        awake(tiny())(torch.tensor([[1, token]]))


def test_a_vocabulary_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab=0; expected >= 1"):
        CausalLM(tiny(), vocab=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_skipping_trains_every_weight_of_the_model(granularity: str) -> None:
    model = awake(tiny("linear", granularity=granularity)).train()
    tokens, _ = sequences()
    mode = RoutingMode(sample=True, generator=torch.Generator().manual_seed(0))
    model(tokens, mode=mode).logits.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()), name


def test_counted_operations_grow_with_usage_and_meet_dense_attention_beside_the_local_track() -> None:
    config = tiny()
    model = CausalLM(config, vocab=VOCAB)
    flops = [model.block_flops(64, [u, u]) for u in (0.0, 0.5, 1.0)]
    assert flops[0] < flops[1] < flops[2]
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0])
    dense, local = (CausalLM(replace(config, layout=kind), vocab=VOCAB).block_flops(64, [0, 0]) for kind in "AL")
    mlp = sum(block.mlp.flops(64) for block in model.blocks)
    router = 2 * 64 * sum(block.mixer.router.proj.weight.numel() for block in model.blocks)
    assert flops[2] == pytest.approx(dense + local - mlp + router)
