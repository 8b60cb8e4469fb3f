from __future__ import annotations

from typing import Any

import pytest
import torch

from turnout.config import from_dict, to_dict
from turnout.errors import ConfigError
from turnout.tasks import RecallConfig


def test_streams_are_seeded_separate_fixed_and_resumable(laws: Any) -> None:
    laws.check_streams(RecallConfig(length=16))


def test_every_field_changes_the_batch(laws: Any) -> None:
    laws.check_fields(RecallConfig(length=16), {"length": 17, "vocab": 300})


@pytest.mark.parametrize("length", [3, 4, 65, 128])
def test_sequence_is_the_published_one(laws: Any, length: int) -> None:
    task = RecallConfig(length=length).build(0)
    batch = task.train_batch(512)
    laws.check_batch(task, batch, 512)
    key, value, noise = batch.tokens[:, 0], batch.tokens[:, 1], batch.tokens[:, 2:-1]
    assert ((key >= 10) & (key <= 109)).all()
    assert ((value >= 110) & (value <= 209)).all()
    assert ((noise >= 210) & (noise <= 255)).all()
    assert torch.equal(batch.tokens[:, -1], key)
    assert torch.equal(batch.targets[:, 0], value)
    assert (batch.at == length - 1).all()
    assert (batch.slices["distance"] == length - 2).all()


def test_hint_marks_the_last_position_only() -> None:
    hint = RecallConfig(length=20).build(0).train_batch(4).hint
    assert hint[:, -1].all() and not hint[:, :-1].any()


def test_keys_values_and_noise_fill_their_ranges_evenly() -> None:
    batch = RecallConfig(length=20).build(0).train_batch(20_000)
    for drawn, first, count in (
        (batch.tokens[:, 0], 10, 100),
        (batch.targets[:, 0], 110, 100),
        (batch.tokens[:, 2], 210, 46),
    ):
        share = torch.bincount(drawn - first, minlength=count) / len(drawn)
        assert share.numel() == count
        assert (share * count - 1).abs().max() < 0.4
    keys, values = batch.tokens[:, 0].double(), batch.targets[:, 0].double()
    assert torch.corrcoef(torch.stack([keys, values]))[0, 1].abs() < 0.03


def test_chance_is_one_in_a_hundred_and_the_oracle_exists() -> None:
    task = RecallConfig().build(0)
    assert task.chance == 0.01
    assert task.has_oracle
    assert (task.vocab, task.length) == (256, 128)


def test_other_lengths_keep_everything_else() -> None:
    assert RecallConfig(length=16, vocab=300).with_length(64) == RecallConfig(length=64, vocab=300)


def test_config_survives_a_round_trip_with_its_kind() -> None:
    config = RecallConfig(length=33)
    assert to_dict(config) == {"kind": "recall", "length": 33, "vocab": 256}
    assert from_dict(RecallConfig, to_dict(config)) == config


def test_tokens_decode_by_class() -> None:
    task = RecallConfig().build(0)
    assert [task.decode_token(token) for token in (3, 10, 110, 255)] == ["u3", "k0", "v0", "n45"]
    with pytest.raises(ConfigError, match="token 256 is outside"):
        task.decode_token(256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"length": 2}, "length=2; expected at least 3"), ({"vocab": 210}, "vocab=210; expected at least 211")],
)
def test_impossible_settings_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecallConfig(**fields)


def test_empty_batches_are_refused() -> None:
    task = RecallConfig().build(0)
    with pytest.raises(ConfigError, match="n=0; expected at least 1"):
        task.train_batch(0)
    with pytest.raises(ConfigError, match="n_batches=0"):
        task.eval_batches(0, 4)
