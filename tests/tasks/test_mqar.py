from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.errors import ConfigError
from turnout.tasks import MQARConfig, RoutedBatch

SMALL = MQARConfig(length=64, pairs=4, vocab=256)


def zoology(n: int, length: int, pairs: int, vocab: int, a: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The published generator's steps, one sequence at a time (without the random filler)."""
    source = np.random.RandomState(seed)
    tokens, labels = np.zeros((n, length), int), np.full((n, length), -100)
    space = (length - 2 * pairs) // 2
    p = a * np.arange(1, space + 1) ** (a - 1)
    for row in range(n):
        keys = source.choice(np.arange(1, vocab // 2), replace=False, size=pairs)
        values = source.choice(np.arange(vocab // 2, vocab), replace=False, size=pairs)
        gaps = source.choice(np.arange(space), replace=False, p=p / p.sum(), size=pairs)
        tokens[row, 0 : 2 * pairs : 2], tokens[row, 1 : 2 * pairs : 2] = keys, values
        tokens[row, 2 * pairs + 2 * gaps] = keys
        labels[row, 2 * pairs + 2 * gaps] = values
    return tokens, labels


@settings(max_examples=30, deadline=None)
@given(pairs=st.integers(1, 9), extra=st.integers(0, 20), random=st.booleans(), seed=st.integers(0, 99))
def test_every_query_sits_on_its_key_and_wants_its_value(
    laws: Any, pairs: int, extra: int, random: bool, seed: int
) -> None:
    config = MQARConfig(length=4 * pairs + 2 * extra, pairs=pairs, vocab=256, random_filler=random)
    task = config.build(seed)
    batch = task.train_batch(7)
    laws.check_batch(task, batch, 7)
    assert isinstance(batch, RoutedBatch)
    assert torch.equal(batch.tokens.gather(1, batch.at), batch.tokens.gather(1, batch.evidence))
    assert torch.equal(batch.tokens.gather(1, batch.evidence + 1), batch.targets)
    assert (batch.at % 2 == 0).all() and (batch.at >= 2 * pairs).all()
    # Every pair is asked for once.
    assert torch.equal(batch.evidence.sort(1).values, (2 * torch.arange(pairs)).expand(7, -1))
    if not random:
        assert ((batch.tokens > 0).sum(1) == 3 * pairs).all()


# 3 of 127 ids are drawn until they differ, 40 are the first of an order of all.
@pytest.mark.parametrize("pairs", [3, 40])
def test_keys_and_values_are_distinct_and_all_come_up(pairs: int) -> None:
    batch = MQARConfig(length=4 * pairs, pairs=pairs, vocab=256).build(0).train_batch(2000)
    keys, values = batch.tokens[:, 0 : 2 * pairs : 2], batch.tokens[:, 1 : 2 * pairs : 2]
    for part, ids in ((keys, range(1, 128)), (values, range(128, 256))):
        assert all(len(set(row)) == pairs for row in part.tolist())
        counts = torch.bincount(part.flatten(), minlength=256)[ids.start : ids.stop].double()
        # Five standard deviations of a binomial count.
        mean = 2000 * pairs / len(ids)
        assert (counts - mean).abs().max() < 5 * mean**0.5


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_gaps_have_the_published_distribution(power: float) -> None:
    n = 4000
    config = MQARConfig(length=64, pairs=4, vocab=256, power=power, random_filler=False)
    mine = config.build(0).train_batch(n)
    _, labels = zoology(n, 64, 4, 256, power, 0)
    share = torch.zeros(64).index_add_(0, mine.at.flatten(), torch.ones(mine.at.numel())) / n
    theirs = torch.from_numpy((labels != -100).mean(0)).float()
    # Two binomial shares of n draws each: five standard errors of their difference.
    limit = 5 * (2 * 0.25 / n) ** 0.5
    assert (share - theirs).abs().max() < limit
    assert abs(float(mine.tokens[:, :8:2].float().mean()) - 64) < 5 * (128 / 12**0.5) / (4 * n) ** 0.5


def test_streams_are_seeded_separate_fixed_and_resumable(laws: Any) -> None:
    laws.check_streams(SMALL)


def test_every_field_changes_the_batch(laws: Any) -> None:
    laws.check_fields(SMALL, {"length": 66, "pairs": 5, "vocab": 300, "power": 1.0, "random_filler": False})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"length": 63}, "even"), ({"pairs": 17}, "cannot hold"), ({"vocab": 64}, "more ids"), ({"power": 0.0}, "power")],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MQARConfig(**changes)
