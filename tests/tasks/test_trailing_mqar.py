from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.errors import ConfigError
from turnout.tasks import TrailingMQARConfig

SMALL = TrailingMQARConfig(length=40, pairs=6, vocab=32)


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.integers(1, 14),
    extra=st.integers(0, 20),
    placement=st.sampled_from(["contiguous", "scattered"]),
    filler=st.sampled_from(["zero", "random"]),
    label=st.sampled_from(["key", "value"]),
    share=st.floats(0, 1),
)
def test_the_last_tokens_ask_for_distinct_pairs(
    laws: Any, pairs: int, extra: int, placement: Any, filler: Any, label: Any, share: float
) -> None:
    queries = 1 + round(share * (pairs - 1))
    config = TrailingMQARConfig(
        length=2 * pairs + queries + extra, pairs=pairs, vocab=64, placement=placement, filler=filler, label=label,
        queries=queries,
    )  # fmt: skip
    task = config.build(1)
    batch = task.train_batch(9)
    laws.check_batch(task, batch, 9)
    key_at = batch.evidence - int(label == "value")
    assert torch.equal(batch.tokens.gather(1, key_at), batch.tokens[:, -queries:])
    assert (key_at.sort(1).values.diff(dim=1) > 0).all()
    assert torch.equal(batch.tokens.gather(1, key_at + 1), batch.targets)
    is_key = (batch.tokens > 0) & (batch.tokens < 32)
    assert (is_key.sum(1) == pairs + queries).all()


def test_streams_are_seeded_separate_fixed_and_resumable(laws: Any) -> None:
    laws.check_streams(SMALL)


@pytest.mark.parametrize(
    "changes",
    [{"length": 41}, {"pairs": 5}, {"vocab": 40}, {"placement": "scattered"}, {"filler": "random"}, {"queries": 3}],
)
def test_every_field_changes_the_batch(laws: Any, changes: dict[str, Any]) -> None:
    base = {"length": 40, "pairs": 6, "vocab": 32}
    assert not laws.same(
        TrailingMQARConfig(**base).build(0).train_batch(8),
        TrailingMQARConfig(**(base | changes)).build(0).train_batch(8),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab": 8}, "for 16 pairs"),
        ({"length": 20}, "cannot hold"),
        ({"vocab": 31}, "even"),
        ({"queries": 17}, "1..pairs=16"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrailingMQARConfig(**changes)
