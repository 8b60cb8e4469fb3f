from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.errors import ConfigError
from turnout.tasks import RetrievalConfig, RoutedBatch

SMALL = RetrievalConfig(length=64, min_distance=24)


def draw(n: int = 200, **changes: Any) -> RoutedBatch:
    batch = RetrievalConfig(**({"length": 64, "min_distance": 24} | changes)).build(0).train_batch(n)
    assert isinstance(batch, RoutedBatch)
    return batch


MATCHES = ["token", "related", "two_token", "gap", "two_hop"]


@st.composite
def configs(draw: st.DrawFn) -> RetrievalConfig:
    direction = draw(st.sampled_from(["after", "before", "either"]))
    match = "token" if direction == "either" else draw(st.sampled_from(MATCHES))
    return RetrievalConfig(
        length=draw(st.sampled_from([128, 191, 512])),
        min_distance=draw(st.integers(20, 60)),
        label=draw(st.sampled_from(["key", "value"])),
        filler=draw(st.sampled_from(["exclude_key", "may_repeat"])),
        distractor_key=draw(st.sampled_from(["other", "same"])),
        distractors=draw(st.integers(0, 6)),
        direction=direction,
        query_marker=draw(st.sampled_from(["none", "before"])),
        match=match,
    )


@settings(max_examples=60, deadline=None)
@given(config=configs(), seed=st.integers(0, 1000))
def test_the_evidence_is_where_the_batch_says(laws: Any, config: RetrievalConfig, seed: int) -> None:
    task = config.build(seed)
    batch = task.train_batch(9)
    laws.check_batch(task, batch, 9)
    key_at = batch.evidence if config.label == "key" else batch.evidence - 1
    found = batch.tokens.gather(1, key_at + 1)
    assert torch.equal(found, batch.targets)
    if config.match == "token":
        assert torch.equal(batch.tokens.gather(1, key_at), batch.tokens.gather(1, batch.at))
    gap = key_at - batch.at
    assert (gap.abs() >= config.min_distance).all()
    if config.direction != "either":
        assert ((gap > 0) == (config.direction == "after")).all()


def test_streams_are_seeded_separate_fixed_and_resumable(laws: Any) -> None:
    laws.check_streams(SMALL)


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 65}, {"vocab": 100}, {"filler": "may_repeat"}, {"distractor_key": "same"},
        {"distractors": 1},
        {"direction": "before"}, {"min_distance": 30}, {"max_distance": 40}, {"query_marker": "before"}, {"queries": 2},
        {"n_values": 5}, {"match": "two_hop"}, {"match": "related"},
    ],
)  # fmt: skip
def test_every_field_changes_the_batch(laws: Any, changes: dict[str, Any]) -> None:
    assert not laws.same(draw(8), draw(8, **changes))


def test_the_label_moves_the_evidence_by_one_and_nothing_else(laws: Any) -> None:
    key, value = draw(8, label="key"), draw(8, label="value")
    assert laws.same(key, value)
    assert torch.equal(key.evidence + 1, value.evidence)


def test_a_key_that_is_kept_out_of_the_filler_occurs_exactly_twice() -> None:
    batch = draw()
    assert ((batch.tokens == batch.tokens.gather(1, batch.at)).sum(1) == 2).all()
    repeats = draw(2000, filler="may_repeat", length=512, min_distance=200)
    copies = (repeats.tokens == repeats.tokens.gather(1, repeats.at)).sum(1).float().mean()
    # 510 filler tokens of 255 ids: two extra copies on average, standard error 0.03.
    assert 3.8 < copies < 4.2


def test_a_related_key_is_one_id_that_occurs_nowhere_else() -> None:
    batch = draw(500, match="related")
    asked, found = batch.tokens.gather(1, batch.at), batch.tokens.gather(1, batch.evidence)
    assert ((batch.tokens == found).sum(1) == 1).all() and (asked != found).all()
    pairs = set(zip(asked.flatten().tolist(), found.flatten().tolist(), strict=True))
    assert len({key for key, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)


def test_same_key_distractors_are_real_decoys() -> None:
    batch = draw(distractor_key="same", distractors=6)
    copies = (batch.tokens == batch.tokens.gather(1, batch.at)).sum(1).float().mean()
    assert copies > 4


@pytest.mark.parametrize("match", ["two_token", "gap"])
def test_one_half_of_a_two_part_key_does_not_identify_the_evidence(match: str) -> None:
    batch = draw(match=match, length=191, min_distance=40, distractors=0)
    second = batch.tokens.gather(1, batch.at)
    matches = (batch.tokens == second).sum(1)
    # The query, the evidence and the decoy that shares the second half.
    assert (matches == 3).all()


def test_queries_have_distinct_keys_and_their_own_evidence() -> None:
    batch = draw(queries=4)
    keys = batch.tokens.gather(1, batch.at)
    assert all(len(set(row)) == 4 for row in keys.tolist())
    assert torch.equal(keys, batch.tokens.gather(1, batch.evidence))


@pytest.mark.parametrize("direction", ["after", "before"])
def test_every_query_of_two_hops_has_a_chain_of_its_own(laws: Any, direction: Any) -> None:
    config = RetrievalConfig(
        length=128, min_distance=24, queries=4, match="two_hop", distractors=0, direction=direction
    )
    batch = config.build(0).train_batch(40)
    laws.check_batch(config.build(0), batch, 40)
    keys, middles = batch.tokens.gather(1, batch.at), batch.tokens.gather(1, batch.evidence)
    assert torch.equal(batch.tokens.gather(1, batch.evidence + 1), batch.targets)
    chain = (batch.tokens[:, None, :-1] == keys[..., None]) & (batch.tokens[:, None, 1:] == middles[..., None])
    # Here (key, middle), there (middle, value), and the query: nothing else holds them.
    assert (chain.sum(-1) == 1).all()
    for ids in (keys, middles):
        assert ((batch.tokens[:, None] == ids[..., None]).sum(-1) == 2).all()


def test_several_queries_before_mirror_the_order(laws: Any) -> None:
    config = RetrievalConfig(length=96, min_distance=24, queries=3, direction="before")
    batch = config.build(0).train_batch(16)
    laws.check_batch(config.build(0), batch, 16)
    assert (batch.evidence < batch.at).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab": 8}, "too small"),
        ({"length": 64, "min_distance": 200}, "cannot hold"),
        ({"queries": 90, "vocab": 400}, "cannot hold"),
        ({"direction": "either", "queries": 2}, "several queries"),
        ({"match": "gap", "queries": 2}, "one query"),
        ({"query_marker": "last"}, "no position after"),
        ({"n_values": 300}, "n_values"),
        ({"max_distance": 3}, "max_distance"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RetrievalConfig(**changes)


def test_a_batch_moves_with_its_evidence() -> None:
    moved = draw(2).to("meta")
    assert moved.evidence.is_meta and moved.tokens.is_meta
