"""What stands beside several processes: one that takes the same batches in halves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turnout.bench.processes import compared, halved_lines
from turnout.errors import ConfigError
from turnout.models import ModelConfig
from turnout.tasks import RecallConfig
from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig
from turnout.train.loop import Trainer

CONFIG = RunConfig(
    device="cpu", task=RecallConfig(length=16), model=ModelConfig(layers=1, width=16, heads=2, layout="A"),
    schedule=JointConfig(steps=4), optim=OptimConfig(batch=4, lr=1e-3),
    loop=LoopConfig(log_every=1, eval_every=100, eval_sequences=4, final_sequences=4, savings=False),
)  # fmt: skip


class Lines(list[dict]):
    def update(self, record: dict) -> None:
        self.append(record)


def test_one_process_in_halves_reads_the_same_batches_and_differs_by_rounding() -> None:
    whole = Lines()
    Trainer(CONFIG, view=whole).train()
    row = compared("halves", [line for line in whole if line["kind"] == "train"], halved_lines(CONFIG))
    assert row["steps"] == 4
    # Sums over a batch in another order: a few units in the last place, as with two processes.
    assert row["largest_difference"] <= 64 * torch.finfo(torch.float32).eps * row["first"][0]


def test_a_batch_without_two_halves_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected an even batch"):
        halved_lines(replace(CONFIG, optim=replace(CONFIG.optim, batch=3)))
