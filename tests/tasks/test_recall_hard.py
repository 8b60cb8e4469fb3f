from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.errors import ConfigError
from turnout.tasks import RecallHardConfig
from turnout.tasks.batch import Batch

SMALL = RecallHardConfig(length=40, pairs=3, queries=4, content=12, noise=6, distractors=2)


def solve(tokens: list[int], at: int) -> int:
    """The rule of the task by brute force: the token after the first occurrence of the query token."""
    return tokens[tokens.index(tokens[at]) + 1]


def check_recoverable(batch: Batch) -> None:
    for tokens, at, targets in zip(batch.tokens.tolist(), batch.at.tolist(), batch.targets.tolist(), strict=True):
        assert [solve(tokens, position) for position in at] == targets
        assert all(tokens.index(tokens[position]) + 1 < position for position in at)


@st.composite
def configs(draw: st.DrawFn) -> RecallHardConfig:
    pairs, queries, distractors = draw(st.integers(1, 9)), draw(st.integers(1, 12)), draw(st.integers(0, 6))
    marker = draw(st.booleans())
    least = 2 * pairs + queries * (1 + marker) + distractors
    return RecallHardConfig(
        length=least + draw(st.sampled_from([0, 1, 3, 40])),
        pairs=pairs,
        queries=queries,
        content=pairs + draw(st.integers(1, 20)),
        noise=draw(st.integers(1, 9)),
        distractors=distractors,
        query_marker=marker,
    )


@settings(max_examples=60, deadline=None)
@given(config=configs(), seed=st.integers(0, 1000))
def test_every_answer_is_recoverable_and_every_item_is_in_place(laws: Any, config: RecallHardConfig, seed: int) -> None:
    task = config.build(seed)
    batch = task.train_batch(7)
    laws.check_batch(task, batch, 7)
    check_recoverable(batch)
    # Nothing was overwritten: the items and only they are outside the noise range.
    is_noise = (batch.tokens >= config.content) & (batch.tokens < config.content + config.noise)
    assert (is_noise.sum(1) == config.length - config.min_length).all()
    assert torch.equal(batch.hint, torch.zeros_like(batch.hint).scatter_(1, batch.at, True))
    if config.query_marker:
        marked = batch.tokens == task.vocab - 1
        assert (marked.sum(1) == config.queries).all()
        assert marked.gather(1, batch.at - 1).all()


def test_streams_are_seeded_separate_fixed_and_resumable(laws: Any) -> None:
    laws.check_streams(SMALL)


def test_every_field_changes_the_batch(laws: Any) -> None:
    changed = {
        "length": 41,
        "pairs": 4,
        "queries": 3,
        "content": 13,
        "noise": 7,
        "distractors": 3,
        "query_marker": True,
    }
    laws.check_fields(SMALL, changed)


def test_distance_is_measured_from_the_value_and_rounded_down_to_a_power_of_two() -> None:
    batch = RecallHardConfig().build(1).train_batch(16)
    for tokens, at, distance in zip(
        batch.tokens.tolist(), batch.at.tolist(), batch.slices["distance"].tolist(), strict=True
    ):
        for position, bucket in zip(at, distance, strict=True):
            exact = position - (tokens.index(tokens[position]) + 1)
            assert bucket <= exact < 2 * bucket
            assert bucket & (bucket - 1) == 0
            assert 1 <= exact <= 510


def test_slices_count_pairs_and_number_the_queries_in_order() -> None:
    slices = SMALL.build(0).train_batch(5).slices
    assert (slices["pairs"] == 3).all()
    assert slices["query"].tolist() == [[0, 1, 2, 3]] * 5


def test_fewer_queries_than_pairs_ask_each_key_once_and_more_repeat_keys() -> None:
    few = dataclasses.replace(SMALL, queries=2).build(0).train_batch(64)
    asked = few.tokens.gather(1, few.at)
    assert (asked[:, 0] != asked[:, 1]).all()
    many = dataclasses.replace(SMALL, queries=6).build(0).train_batch(64)
    for row in many.tokens.gather(1, many.at).tolist():
        assert sorted(row.count(key) for key in set(row)) == [2, 2, 2]


def test_keys_and_values_come_from_one_vocabulary_evenly() -> None:
    config = dataclasses.replace(SMALL, distractors=0)
    batch = config.build(0).train_batch(6000)
    for drawn in (batch.tokens.gather(1, batch.at), batch.targets):
        share = torch.bincount(drawn.flatten(), minlength=config.content) / drawn.numel()
        assert share.numel() == config.content
        assert (share * config.content - 1).abs().max() < 0.15


def test_keys_are_distinct_and_no_value_or_distractor_is_a_key_of_its_sequence() -> None:
    config = RecallHardConfig(length=60, pairs=5, queries=5, content=7, noise=3, distractors=9)
    batch = config.build(0).train_batch(200)
    for tokens, at, targets in zip(batch.tokens.tolist(), batch.at.tolist(), batch.targets.tolist(), strict=True):
        keys = {tokens[position] for position in at}
        assert len(keys) == 5
        assert not keys & set(targets)
        content = [token for token in tokens if token < config.content]
        assert sum(token in keys for token in content) == 10
        assert len(content) == 2 * 5 + 5 + 9


def test_items_are_spread_over_the_whole_sequence() -> None:
    config = RecallHardConfig(length=64, pairs=2, queries=2)
    batch = config.build(0).train_batch(8000)
    content = (batch.tokens < config.content).double().mean(0)
    # Of two uniform draws the earlier one has density 2(1-x), the later one 2x: two pairs of two tokens, two queries.
    place = (torch.arange(64) + 0.5) / 64
    expected = 2 * (2 * 2 * (1 - place) + 2 * place) / 64
    # The first and last place hold less: a pair there has only one way to lie.
    assert (content / expected - 1)[1:-1].abs().max() < 0.15
    first_key = torch.tensor(
        [row.index(row[at]) for row, at in zip(batch.tokens.tolist(), batch.at[:, 0].tolist(), strict=True)]
    )
    assert first_key.min() == 0 and first_key.max() > 40
    assert batch.at.max() == 63


def test_a_query_looks_locally_like_a_pair_unless_it_is_marked() -> None:
    def before_query_is_noise(config: RecallHardConfig) -> float:
        batch = config.build(0).train_batch(200)
        before = batch.tokens.gather(1, batch.at - 1)
        return float(((before >= config.content) & (before < config.content + config.noise)).double().mean())

    assert before_query_is_noise(RecallHardConfig()) > 0.9
    assert before_query_is_noise(RecallHardConfig(query_marker=True)) == 0.0


def test_the_task_states_chance_vocabulary_and_oracle() -> None:
    task = RecallHardConfig(content=50, noise=10, query_marker=True).build(0)
    assert (task.chance, task.vocab, task.length, task.has_oracle) == (0.02, 61, 512, True)
    assert [task.decode_token(token) for token in (0, 49, 50, 60)] == ["c0", "c49", "n0", "?"]


def test_other_lengths_keep_everything_else() -> None:
    assert SMALL.with_length(80) == dataclasses.replace(SMALL, length=80)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": 0}, "pairs=0; expected at least 1"),
        ({"queries": 0}, "queries=0; expected at least 1"),
        ({"noise": 0}, "noise=0; expected at least 1"),
        ({"distractors": -1}, "distractors=-1; expected at least 0"),
        ({"content": 8}, "use content >= 9 or pairs <= 7"),
        ({"length": 23}, "8 pairs, 8 queries and 0 distractors; use length >= 24"),
        (
            {"length": 36, "distractors": 5, "query_marker": True},
            "8 queries with markers and 5 distractors; use length >= 37",
        ),
    ],
)
def test_impossible_settings_are_refused_with_what_would_do(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecallHardConfig(**fields)
