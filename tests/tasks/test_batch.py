from __future__ import annotations

import torch

from turnout.tasks import RecallHardConfig


def test_moving_a_batch_moves_every_tensor() -> None:
    batch = RecallHardConfig().build(0).train_batch(3).to("meta")
    tensors = [batch.tokens, batch.at, batch.targets, batch.hint, *batch.slices.values()]
    assert all(tensor.device == torch.device("meta") for tensor in tensors)
