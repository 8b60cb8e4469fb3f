"""Every pattern against its definition, one pair at a time, and the laws that all of them keep."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from oracles import assert_as_exact_as_eager
from pattern_laws import HEADS, KV_HEADS, WIDTH, build, lively, oracle_attend, pass_of
from routing_laws import VOCAB, assert_same, awake, in_pieces, sequences, terms_of, tiny
from turnout.errors import ConfigError, UnsupportedError
from turnout.layers import reading
from turnout.layers.reading import read
from turnout.models import CausalLM, DecodeStep
from turnout.probe.causality import certify
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import PATTERNS, PatternContext, Reach

FIXED = ["full", "window", "sinks", "dilated", "strided", "alibi", "retnet", "power_law", "routed", "head_mixture"]
LENGTH = 21


def spec_of(name: str) -> str:
    return next(spec for spec in lively() if spec.partition(":")[0] == name)


def tensors(length: int = LENGTH, *, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dim = WIDTH // HEADS
    shapes = [(2, length, HEADS, dim), (2, length, KV_HEADS, dim), (2, length, KV_HEADS, dim)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def reach_of(spec: str, length: int, dtype: torch.dtype = torch.float64) -> Reach:
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return build(spec).to(dtype).reach(x, at=torch.arange(length), length=length, state=None, mode=pass_of(length))


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, LENGTH, 32])
def test_a_fixed_pattern_is_softmax_attention_under_its_mask_and_bias(
    name: str, dtype: torch.dtype, length: int
) -> None:
    spec = spec_of(name)
    # The published merge of branches has no gradient of its own.
    spec = spec + ",detach=false" if name == "dilated" else spec

    def fast(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return read(q, k, v, reach_of(spec, length, q.dtype))

    def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return oracle_attend(q, k, v, spec)

    assert_as_exact_as_eager(fast, eager, tensors(length), reduction=length * WIDTH, dtype=dtype)


@pytest.mark.parametrize("name", ["power_law", "kerple", "fire", "cope"])
def test_log_weights_of_a_long_sequence_are_made_in_chunks_to_the_same_attention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach, made = reach_of(spec_of(name), LENGTH), []
    monkeypatch.setattr(reading, "LEAST_CHUNK", 4)
    plain = reading.log_weights
    monkeypatch.setattr(reading, "log_weights", lambda *given: made.append(plain(*given)) or made[-1])

    def outcome(most: int) -> list[torch.Tensor]:
        monkeypatch.setattr(reading, "MOST_WEIGHTS", most)
        inputs = [tensor.requires_grad_() for tensor in tensors()]
        out = read(inputs[0], inputs[1], inputs[2], reach)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    whole, parts = outcome(2**28), outcome(1)
    assert [tuple(one.shape[-2:]) for one in made] == [(LENGTH, LENGTH), *((4, n) for n in range(4, 21, 4)), (1, 21)]
    for one, other in zip(whole, parts, strict=True):
        assert_same(other, one, terms=LENGTH * WIDTH)


def test_the_published_merge_of_branches_has_the_same_output_and_no_gradient_of_its_weights() -> None:
    q, k, v = tensors()
    q.requires_grad_()
    outs = [read(q, k, v, reach_of(f"dilated:branches=(4/1+8/2),detach={word}", LENGTH)) for word in ("true", "false")]
    assert_same(*outs, terms=LENGTH * WIDTH)
    detached, whole = (torch.autograd.grad(out.square().sum(), q)[0] for out in outs)
    assert not torch.allclose(detached, whole)


@pytest.mark.parametrize("spec", lively())
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_taken_read_what_they_read_among_all(spec: str, grouped: bool) -> None:
    q, k, v = tensors()
    reach = reach_of(spec, LENGTH)
    whole = read(q, k, v, reach)
    generator = torch.Generator().manual_seed(2)
    lists = KV_HEADS if grouped else 1
    rows = torch.rand(2, lists, LENGTH, generator=generator).argsort(-1)[..., :7].sort(-1).values
    rows[1, 0, -3:] = -1
    index = rows.clamp(min=0).repeat_interleave(HEADS // lists, 1).transpose(1, 2)[..., None].expand(-1, -1, -1, 4)
    empty = (rows < 0).repeat_interleave(HEADS // lists, 1).transpose(1, 2)[..., None]
    have = read(q.gather(1, index), k, v, reach, rows=rows if grouped else rows[:, 0])
    assert_same(have, whole.gather(1, index).masked_fill(empty, 0.0), terms=LENGTH * WIDTH)


def model_of(spec: str, *, layout: str = "R", router: str = "linear", **changes: Any) -> CausalLM:
    model = awake(tiny(router, layout=layout, pattern=spec, **changes))
    for block in model.blocks:
        pattern = getattr(getattr(block.mixer, "attention", None), "pattern", None)
        if pattern is not None:
            generator = torch.Generator().manual_seed(11)
            for p in pattern.parameters():
                p.data += 0.3 * torch.randn(p.shape, generator=generator).to(p)
    return model


@pytest.mark.parametrize("spec", lively())
@pytest.mark.parametrize("layout", ["R", "A"])
def test_nothing_sees_the_future(spec: str, layout: str) -> None:
    certificate = certify(model_of(spec, layout=layout), length=23, positions=4)
    assert certificate.causal, str(certificate)


@pytest.mark.parametrize("spec", lively())
@pytest.mark.parametrize("layout", ["R", "A"])
@pytest.mark.parametrize("sizes", [[1] * 13, [5, 1, 7]])
def test_steps_and_segments_equal_the_whole_sequence(spec: str, layout: str, sizes: list[int]) -> None:
    model = model_of(spec, layout=layout)
    tokens, hint = sequences()
    whole = model(tokens, hint=hint).logits.detach()
    have, _ = in_pieces(model, tokens, hint, sizes)
    assert_same(have, whole, terms=terms_of(model.config), size=1.0)


@pytest.mark.parametrize("spec", lively())
def test_one_token_at_a_time_works_where_there_is_a_decode_kernel(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that the kernel cannot do goes the other way, instead of failing on a GPU alone."""
    monkeypatch.setattr("turnout.layers.mixer.has_decode_kernel", lambda k: True)
    model = model_of(spec)
    tokens, hint = sequences()
    have, _ = in_pieces(model, tokens, hint, [9, 1, 1, 1, 1])
    assert_same(have, model(tokens, hint=hint).logits.detach(), terms=terms_of(model.config), size=1.0)


@pytest.mark.parametrize("spec", lively())
def test_padding_after_a_sequence_changes_nothing_in_it(spec: str) -> None:
    model = model_of(spec, layout="A")
    tokens, _ = sequences()
    longer = torch.cat([tokens, tokens.flip(1)], 1)
    have = model(longer).logits[:, : tokens.shape[1]]
    assert_same(have, model(tokens).logits, terms=terms_of(model.config), size=1.0)


@pytest.mark.parametrize("spec", lively())
def test_skipping_rows_that_stay_local_equals_computing_all(spec: str) -> None:
    model = model_of(spec, granularity="group")
    tokens, hint = sequences()
    skipped = model(tokens, hint=hint).logits
    dense = model(tokens, hint=hint, mode=RoutingMode(skip=False)).logits
    assert_same(skipped, dense, terms=terms_of(model.config), size=1.0)


@pytest.mark.parametrize("spec", lively())
def test_a_replayed_step_equals_the_call_or_is_refused(spec: str) -> None:
    model = model_of(spec, layout="A")
    tokens, _ = sequences()
    want = model(tokens).logits.detach()
    state = model.init_state(len(tokens), tokens.shape[1])
    with torch.no_grad():
        model(tokens[:, :6], state=state)
    try:
        step = DecodeStep(model, state)
    except UnsupportedError as error:
        assert "call the model with state=" in str(error)
        return
    have = torch.cat([step(tokens[:, t : t + 1]).logits.clone() for t in range(6, tokens.shape[1])], 1)
    assert_same(have, want[:, 6:], terms=terms_of(model.config), size=1.0)


@pytest.mark.parametrize("name", [name for name in PATTERNS.names() if name != "full"])
def test_a_pattern_changes_what_a_model_computes(name: str) -> None:
    tokens, hint = sequences()
    assert not torch.equal(
        model_of(spec_of(name)).eval()(tokens, hint=hint).logits, model_of("full")(tokens, hint=hint).logits
    )


# fmt: off
CHANGED: dict[str, dict[str, str]] = {
    "window:size=4": {"size": "5"},
    "sinks:size=3,sinks=2": {"size": "4", "sinks": "1"},
    "dilated:branches=(4/1+8/2),detach=true": {"branches": "4/1+16/2", "detach": "false"},
    "strided:block=2,near=1,stride=3": {"block": "1", "near": "2", "stride": "2"},
    "top_blocks:block=2,keep=1,near=1": {"block": "3", "keep": "2", "near": "2"},
    "random_blocks:block=2,keep=1,near=1,share=1,seed=0": {
        "block": "3", "keep": "2", "near": "2", "share": "2", "seed": "1",
    },
    "low_rank:block=2,keep=1,near=1,rank=3,shift=true,share=1": {
        "block": "3", "keep": "2", "near": "2", "rank": "4", "shift": "false", "share": "2",
    },
    "last_match:size=3,ngram=1,matches=1,follow=1,mark=true": {
        "size": "4", "ngram": "2", "matches": "2", "follow": "2", "mark": "false",
    },
    "buckets:size=3,keep=1,tables=1,buckets=4,shift=0,seed=0": {
        "size": "4", "keep": "2", "tables": "2", "buckets": "2", "shift": "1", "seed": "1",
    },
    "alibi:slope=8,prune=0.001,cap=0.5": {"slope": "1", "prune": "0.9", "cap": "0.3"},
    "retnet:shift=0.1,prune=0.001,cap=0.5": {"shift": "2", "prune": "0.9", "cap": "0.3"},
    "power_law:low=0.25,high=2.0,scale=1.0": {"low": "0.5", "high": "3", "scale": "2"},
    "forget:gate=full,shortest=0.1,longest=0.4,prune=0.001,cap=0.5": {
        "gate": "bias", "shortest": "0.2", "longest": "0.2", "prune": "0.9", "cap": "0.3",
    },
    "span:longest=8,ramp=3,cost=0.1,start=0.5": {"longest": "9", "ramp": "4", "cost": "0.2", "start": "0.2"},
    "kerple:least=0.01": {"least": "3.0"},
    "fire:hidden=4,threshold=4.0,c=0.1": {"hidden": "5", "threshold": "9", "c": "1"},
    "cope:positions=4": {"positions": "5"},
    "gated_window:size=3,sinks=1,closed=0.5,steps=4,speed=1.0": {
        "size": "4", "sinks": "2", "closed": "1", "steps": "8", "speed": "2",
    },
    "head_mixture:parts=(2 window:size=3;2 alibi)": {"parts": "2 window:size=4;2 alibi"},
}


# fmt: on
@pytest.mark.parametrize("spec", list(CHANGED))
def test_every_option_changes_an_output_or_a_gradient(spec: str) -> None:
    from turnout.spec import Spec, format_spec, parse_spec

    base = parse_spec(spec)
    assert set(CHANGED[spec]) == set(base.options) == set(PATTERNS.options(base.name)), "name every option"

    def outcome(text: str) -> torch.Tensor:
        q, k, v = tensors(40)
        q.requires_grad_()
        if "prune" in text:
            # Far from the threshold nothing is pruned, whatever the bound.
            q, k = 100 * q, 100 * k
        x = torch.randn(2, 40, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        pattern = build(text).train()
        seen = pass_of(40)
        mode = replace(seen, skip=False, sample=True, generator=torch.Generator().manual_seed(5))
        # Several passes, because a schedule counts them.
        for _ in range(4):
            reach = pattern.reach(x, at=torch.arange(40), length=40, state=None, mode=mode)
        extra = pattern.penalty()
        decided = pattern.eval().reach(x, at=torch.arange(40), length=40, state=None, mode=seen)
        out = torch.stack([read(q, k, v, reach), read(q, k, v, decided)])
        price = torch.zeros(1) if extra is None else extra.detach()[None]
        return torch.cat([out.flatten(), torch.autograd.grad(out.square().sum(), q)[0].flatten(), price])

    for name, value in CHANGED[spec].items():
        changed = format_spec(Spec(base.name, {**base.options, name: value}))
        assert not torch.equal(outcome(spec), outcome(changed)), f"{name}={value} changes nothing"


BAD = [
    ("window:size=0", "size=0; expected >= 1"),
    ("sinks:sinks=0", r"sinks=0; expected both >= 1"),
    ("alibi:slope=-1", r"slope=-1.0; expected > 0"),
    ("alibi:prune=1", r"prune=1.0, cap=6.0; expected 0 <= prune < 1"),
    ("alibi:cap=4", "cap=4.0 without prune shortens nothing"),
    ("forget:gate=fixed,cap=4", "cap=4.0 without prune shortens nothing"),
    ("forget:gate=none,prune=0.1", "gate=none never forgets"),
    ("forget:gate=none,longest=9", "gate=none never forgets"),
    ("retnet:shift=0", r"shift=0.0; expected > 0"),
    ("power_law:low=-1", r"low=-1.0.*expected 0 < low <= high"),
    ("strided:stride=1", r"stride=1; expected block >= 1, near >= 0 and stride >= 2"),
    ("dilated:branches=(4/2+8/4)", "skip a token's own key"),
    ("dilated:branches=(8/1+4/2)", "overlap; expected longer segments"),
    ("dilated:branches=(4/1+6/2)", "overlap; expected longer segments"),
    ("dilated:branches=(0/1)", "empty or uneven segments"),
    ("dilated:branches=(4/1+8/3)", "empty or uneven segments"),
    ("dilated:branches=four", "write segment/rate joined by"),
    ("head_mixture:parts=(2 full)", r"has 2 heads; expected 4 in all"),
    ("head_mixture:parts=(1 full;3 window)", r"each part a positive multiple of 2"),
    ("head_mixture:parts=full", r"write \(2 full;6 window:size=64\)"),
    ("forget:gate=bais", "gate='bais'; did you mean 'bias'"),
    ("forget:shortest=9,longest=3", r"expected 0 < shortest <= longest"),
    ("span:start=2", r"start=2.0; expected longest >= 1, ramp >= 1"),
    ("kerple:least=0", r"least=0.0; expected > 0"),
    ("fire:hidden=0", r"hidden=0.*expected hidden >= 1"),
    ("cope:positions=1", r"positions=1; expected >= 2"),
    ("gated_window:closed=0", r"closed=0.0.*0 < closed <= 1"),
    ("top_blocks:near=-1", "near=-1; expected block >= 1, keep >= 1 and near >= 0"),
    ("random_blocks:keep=0", "keep=0, near=0; expected block >= 1, keep >= 1 and near >= 0"),
    ("low_rank:block=16,share=3", "share=3; expected a divisor of block=16"),
    ("low_rank:rank=0", "rank=0; expected block, keep and rank >= 1"),
    ("last_match:ngram=0", "ngram=0, matches=4, follow=1; expected all >= 1"),
    ("buckets:tables=0", "tables=0, shift=0; expected size, keep and tables >= 1"),
    ("buckets:buckets=9", "buckets=9; expected an even number from 2 to 8, twice the head dim"),
    ("windw", "unknown pattern 'windw'; did you mean 'window'"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_an_impossible_pattern_is_refused_with_what_was_given(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "window:size=16", "sinks:size=12", "dilated:branches=(16/1+32/2)", "strided:block=8,near=0",
        "head_mixture:parts=(2 full;2 window:size=99)", "span:longest=24,ramp=4",
        "top_blocks:block=4,keep=2,near=1", "random_blocks:block=4,keep=2,near=1",
        "low_rank:block=4,keep=2,near=1", "last_match:size=15,ngram=1", "buckets:size=8,keep=4,tables=2,buckets=4",
    ],
)  # fmt: skip
def test_a_pattern_that_covers_the_whole_sequence_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"covers the whole sequence of 16 tokens, so it changes nothing"):
        build(spec).check_length(16)
    build(spec).check_length(200)


def test_the_counted_keys_are_those_that_are_read() -> None:
    for name in ("full", "window", "sinks", "strided", "head_mixture", "top_blocks", "random_blocks"):
        spec = spec_of(name).replace("2 alibi", "2 window:size=5")
        context = PatternContext(width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=4)
        _, k, _ = tensors()
        q = torch.zeros(2, LENGTH, HEADS, 4, dtype=torch.float64)
        v = torch.zeros_like(k)
        # With equal scores a row of n keys gives weight 1/n: the sum of squares of the weights of all keys is 1/n.
        reach = PATTERNS.build(spec, context=context).reach(
            torch.zeros(2, LENGTH, WIDTH), at=torch.arange(LENGTH), length=LENGTH, state=None, mode=SKIP
        )
        seen = torch.zeros(LENGTH, HEADS, dtype=torch.float64)
        for s in range(LENGTH):
            v.zero_()[:, s] = 1.0
            seen += (read(q, k, v, reach)[0, :, :, 0] > 0).double()
        assert PATTERNS.build(spec, context=context).mean_keys(LENGTH) == pytest.approx(float(seen.mean())), name


@pytest.mark.parametrize("spec", [*lively(), "alibi:prune=0.1"])
def test_the_cost_can_be_counted_without_weights(spec: str) -> None:
    with torch.device("meta"):
        model = CausalLM(tiny(layout="A", pattern=spec), vocab=VOCAB)
    assert 0 < model.block_flops(32, [1.0, 1.0]) <= CausalLM(tiny(layout="A"), vocab=VOCAB).block_flops(32, [1.0, 1.0])


@pytest.mark.parametrize("spec", lively())
def test_training_reads_no_value_on_the_host(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device without values any look at one fails; a captured step on a GPU must not look either."""

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        decay = options.get("log_decay")
        return q + 0 * (k.sum() + v.sum()) + (0 if decay is None else 0 * decay.sum())

    monkeypatch.setattr("turnout.layers.reading.attend", stand_in)
    # Torch has no autocast for this device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with torch.device("meta"):
        model = CausalLM(tiny(layout="A", pattern=spec), vocab=VOCAB).train()
        logits = model(torch.zeros(2, 16, dtype=torch.int64), mode=RoutingMode(skip=False)).logits
        extra = model.pattern_penalty()
        (logits.sum() + (0.0 if extra is None else extra)).backward()
    assert model.embed.weight.grad is not None
