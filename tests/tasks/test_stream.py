from __future__ import annotations

import pytest
import torch

from turnout.errors import CheckpointError
from turnout.tasks import RecallConfig, RecallHardConfig
from turnout.tasks.stream import TrainStream, generator


def test_a_generator_is_fixed_by_seed_purpose_and_position() -> None:
    def draw(seed: int, purpose: str, position: int) -> list[int]:
        return torch.randint(1 << 30, (4,), generator=generator(seed, purpose, position)).tolist()

    assert draw(1, "train", 5) == draw(1, "train", 5)
    assert len({tuple(draw(s, p, i)) for s in (0, 1, 2) for p in ("train", "eval") for i in range(4)}) == 24


def test_drawing_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    RecallHardConfig().build(0).train_batch(4)
    assert torch.equal(before, torch.get_rng_state())


def test_a_state_crosses_lengths_but_not_seeds_or_tasks() -> None:
    short = RecallConfig(length=16).build(0)
    for _ in range(3):
        short.train_batch(4)
    grown = RecallConfig(length=32).build(0)
    grown.load_state_dict(short.state_dict())
    assert grown.state_dict()["position"] == 3
    with pytest.raises(CheckpointError, match="seed=0 but this task has seed=1"):
        RecallConfig().build(1).load_state_dict(short.state_dict())
    with pytest.raises(CheckpointError, match="kind='recall' but this task has kind='recall_hard'"):
        RecallHardConfig().build(0).load_state_dict(short.state_dict())


@pytest.mark.parametrize("position", [None, -1, "3", True, 1.5])
def test_a_damaged_state_is_refused(position: object) -> None:
    with pytest.raises(CheckpointError, match="expected the number of batches drawn"):
        TrainStream(kind="recall", seed=0).load_state_dict({"kind": "recall", "seed": 0, "position": position})
