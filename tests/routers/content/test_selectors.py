"""Laws of every content selector."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from turnout.errors import ConfigError
from turnout.ops.precision import routing_metrics
from turnout.routers.content import CONTENT_SELECTORS, ContentSelector, SelectorContext, top_positions
from turnout.routers.content.bandit import BanditSelector, play
from turnout.routers.content.bloom import false_positives
from turnout.tasks import RetrievalConfig

CONTEXT = SelectorContext(width=16, length=64, vocab=256, heads=2)
SPECS = (
    "pairwise", "pairwise:frozen=true", "low_rank:rank=3", "rank1", "rank1:query=none", "rank1:query=shuffled",
    "rank1:query=sign", "linear_attention", "segment:size=4", "segment:size=4,pool=max",
    "segment:size=4,pool=decay,project=false", "cosine", "cosine:project=false", "random_projection",
    "random_projection:rank=5,twin=false", "memory:slots=4", "centroid:clusters=5", "loop", "exact",
    "exact:ngram=2,offset=1", "bloom:size=4", "bm25:size=4", "bm25:size=4,neighbours=2", "position", "position:size=4",
    "bandit",
    "budget", "budget:spend=0.25,adaptive=false", "none",
)  # fmt: skip


def build(spec: str, seed: int = 0) -> ContentSelector:
    torch.manual_seed(seed)
    return CONTENT_SELECTORS.build(spec, context=CONTEXT)  # type: ignore[no-any-return]


def batch(n: int = 6, **changes: Any) -> Any:
    return RetrievalConfig(**({"length": 64, "min_distance": 24} | changes)).build(0).train_batch(n)


def codes(tokens: torch.Tensor, seed: int = 0) -> torch.Tensor:
    table = torch.randn(256, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(table, dim=-1)[tokens]


def test_every_selector_is_covered() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(CONTENT_SELECTORS.names())


@pytest.mark.parametrize("spec", SPECS)
def test_scores_cover_all_units_and_never_the_querys_own(spec: str) -> None:
    selector, drawn = build(spec), batch(queries=2)
    score = selector(codes(drawn.tokens), drawn.tokens, drawn.at)
    assert score.shape == (6, 2, selector.units)
    own = (drawn.at // selector.unit)[..., None]
    assert (score.gather(-1, own) == -math.inf).all()
    assert torch.isfinite(score).sum() == score.numel() - drawn.at.numel()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "rank1:query=shuffled"])
def test_sequences_of_a_batch_do_not_influence_each_other(spec: str) -> None:
    selector, drawn = build(spec), batch()
    x = codes(drawn.tokens)
    whole = selector(x, drawn.tokens, drawn.at)
    alone = selector(x[2:3], drawn.tokens[2:3], drawn.at[2:3]).detach()
    finite = torch.isfinite(alone[0])
    slack = 64 * torch.finfo(torch.float32).eps * max(1.0, float(alone[0][finite].abs().max()))
    assert (whole[2] - alone[0])[finite].abs().max() <= slack


@pytest.mark.parametrize("spec", SPECS)
def test_stacked_copies_give_what_each_copy_gives(spec: str) -> None:
    selectors, drawn = [build(spec, seed) for seed in range(2)], batch()
    params, buffers = stack_module_state(selectors)  # type: ignore[arg-type]
    x = torch.stack([codes(drawn.tokens, seed) for seed in range(2)])

    def one(p: Any, b: Any, inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(selectors[0], (p, b), (inputs, drawn.tokens, drawn.at))  # type: ignore[no-any-return]

    together = vmap(one, in_dims=(0 if params else None, 0 if buffers else None, 0))(params, buffers, x)
    for i, selector in enumerate(selectors):
        alone = selector(x[i], drawn.tokens, drawn.at)
        finite = torch.isfinite(alone)
        slack = 64 * torch.finfo(torch.float32).eps * max(1.0, float(alone[finite].abs().max()))
        assert (together[i] - alone)[finite].abs().max() <= slack


def test_identity_match_finds_the_key_and_with_an_offset_the_value() -> None:
    for label, spec in (("key", "exact"), ("value", "exact:offset=1")):
        drawn = batch(200, label=label)
        found = routing_metrics(build(spec)(codes(drawn.tokens), drawn.tokens, drawn.at), drawn.evidence, k=1)
        assert found["p1"] == 1.0


def test_a_bigram_index_is_needed_when_decoys_share_a_half() -> None:
    drawn = RetrievalConfig(length=64, min_distance=20, match="two_token", distractors=0).build(0).train_batch(200)
    x = codes(drawn.tokens)
    single = routing_metrics(build("exact")(x, drawn.tokens, drawn.at), drawn.evidence, k=1)["p1"]
    both = routing_metrics(build("exact:ngram=2")(x, drawn.tokens, drawn.at), drawn.evidence, k=1)["p1"]
    assert both == 1.0 and single == 0.5


def test_a_bloom_filter_never_misses_and_errs_at_its_rate() -> None:
    drawn = batch(500)
    selector = build("bloom:size=16,bits=6,hashes=3,max_error=0.2")
    score = selector(codes(drawn.tokens), drawn.tokens, drawn.at)
    target = drawn.evidence // 16
    assert (score.gather(-1, target[..., None]) == 1).all()
    inside = (drawn.tokens.unflatten(1, (4, 16))[:, None] == drawn.tokens.gather(1, drawn.at)[..., None, None]).any(-1)
    absent = torch.isfinite(score) & ~inside
    rate = float(score[absent].mean())
    expected = false_positives(96, 16, 3)
    # Binomial, five standard errors; filler repeats make filters a little emptier than 16 tokens.
    assert abs(rate - expected) < 5 * (expected / int(absent.sum())) ** 0.5 + 0.1 * expected


def test_rank_one_ranks_keys_the_same_for_every_query_up_to_a_sign() -> None:
    # In float64, so that no two fingerprints collide after rounding.
    selector, drawn = build("rank1").double(), batch(queries=4)
    score = selector.score(codes(drawn.tokens).double(), drawn.tokens, drawn.at)
    order = score[:, :1].argsort(-1).expand_as(score)
    steps = score.gather(-1, order).diff(dim=-1)
    assert ((steps >= 0).all(-1) | (steps <= 0).all(-1)).all()


def test_a_random_sign_is_a_fair_coin_that_the_query_does_not_toss() -> None:
    selector, drawn = build("rank1:query=sign"), batch(512)
    x = codes(drawn.tokens)
    free = build("rank1:query=none")
    free.load_state_dict(selector.state_dict())
    sign = selector.score(x, drawn.tokens, drawn.at) / free.score(x, drawn.tokens, drawn.at)
    assert (sign.abs() - 1).abs().max() <= 4 * torch.finfo(torch.float32).eps
    # Five standard deviations of a fair coin, among all sequences and those whose query has an even id.
    even = drawn.tokens.gather(1, drawn.at)[:, 0] % 2 == 0
    for coin in (sign[:, 0, 0], sign[even, 0, 0], sign[~even, 0, 0]):
        assert coin.mean().abs() <= 5 * len(coin) ** -0.5


def test_rank_one_answers_two_of_four_queries_with_one_pick_at_the_very_best() -> None:
    # The queries of a sequence pick the first key of one order, or the last: k picks answer 2k of them.
    selector, drawn = build("rank1"), batch(queries=4)
    best = torch.tensor([10.0, 11.0, -10.0, -11.0]).expand(drawn.at.shape)
    x = torch.zeros(*drawn.tokens.shape, 16)
    x[..., 0] = torch.zeros(drawn.tokens.shape).scatter(1, drawn.at, best).scatter(1, drawn.evidence, best)
    selector.load_state_dict({"v.weight": torch.eye(1, 16)})
    picks = selector(x, drawn.tokens, drawn.at).argmax(-1)
    assert (picks == drawn.evidence).sum(1).eq(2).all()


def test_full_rank_low_rank_spans_the_pairwise_form() -> None:
    pair, low = build("pairwise"), build("low_rank:rank=16")
    low.load_state_dict(pair.state_dict())
    drawn = batch()
    x = codes(drawn.tokens)
    ratio = low.score(x, drawn.tokens, drawn.at) / pair.score(x, drawn.tokens, drawn.at)
    assert (ratio - 2**0.5).abs().max() < 1e-2


def test_a_budget_is_spent_in_doubt_and_saved_in_certainty() -> None:
    selector = build("budget:spend=0.5")
    certain = torch.zeros(1, 1, 64)
    certain[..., 7] = 50.0
    assert int(selector.reads(torch.zeros(1, 1, 64)).sum()) == 32  # type: ignore[operator]
    read = selector.reads(certain)  # type: ignore[operator]
    assert int(read.sum()) == 1 and bool(read[..., 7])
    # The control spends it always, and spending all is the pairwise selector.
    assert int(build("budget:spend=0.25,adaptive=false").reads(certain).sum()) == 16  # type: ignore[operator]
    drawn = batch()
    x = codes(drawn.tokens)
    whole = build("budget:spend=1.0,adaptive=false").score(x, drawn.tokens, drawn.at)
    assert torch.equal(whole, build("pairwise").score(x, drawn.tokens, drawn.at))


def test_what_a_budget_did_not_read_scores_below_it_and_teaches_nothing() -> None:
    selector, drawn = build("budget:spend=0.25,adaptive=false").double(), batch()
    x = codes(drawn.tokens).double().requires_grad_()
    score = selector.score(x, drawn.tokens, drawn.at)
    order = score.argsort(-1, descending=True)
    kept, rest = order[..., :16], order[..., 16:]
    assert (score.gather(-1, rest) == score.gather(-1, kept).amin(-1, keepdim=True) - math.log(64)).all()
    (grad,) = torch.autograd.grad(score.gather(-1, rest).sum(), x)
    assert not bool(grad.any())


@pytest.mark.parametrize("kind", ["linucb", "thompson", "oful"])
def test_a_bandit_learns_identity_match_from_hits_alone(kind: str) -> None:
    drawn, test = batch(3000), batch(200, distractors=2)
    bandit = BanditSelector(CONTEXT, kind=kind, alpha=0.1)
    play(bandit, codes(drawn.tokens), drawn.at, drawn.evidence)
    found = routing_metrics(bandit(codes(test.tokens), test.tokens, test.at), test.evidence, k=1)
    assert found["p1"] > 0.9


def test_top_positions_read_neighbours_and_whole_segments() -> None:
    score = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]])
    assert top_positions(score, 2).tolist() == [[[1, 3]]]
    assert top_positions(score, 2, expand=1).tolist() == [[[1, 2, 3, 3]]]
    assert top_positions(score, 1, unit=2).tolist() == [[[2, 3]]]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("segment:size=5", "equal segments"), ("segment:size=4,pool=sum", "pool"), ("bloom:size=4,bits=1", "max_error"),
        ("low_rank:rank=17", "rank"), ("rank1:query=all", "query"), ("cosine:temperature=0", "temperature"),
        ("memory:slots=1", "slots"), ("centroid:clusters=1", "clusters"), ("loop:rounds=0", "rounds"),
        ("budget:spend=0.0", "spend"),
        ("exact:ngram=0", "ngram"), ("bm25:size=4,k1=0", "k1"), ("bandit:kind=ucb", "linucb"),
        ("bandit:alpha=-1", "alpha"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(spec)
