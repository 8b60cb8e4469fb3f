"""Laws that every task obeys, shared by the tests of each task."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from turnout.tasks.batch import Batch, Task


class Laws:
    """The laws as methods, so that tests reach them through one fixture."""

    @staticmethod
    def same(left: Batch, right: Batch) -> bool:
        """Whether two batches are equal in every tensor, bit for bit."""
        return (
            all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("tokens", "at", "targets", "hint"))
            and (left.starts is None) is (right.starts is None)
            and (left.starts is None or torch.equal(left.starts, right.starts))  # type: ignore[arg-type]
            and left.slices.keys() == right.slices.keys()
            and all(torch.equal(left.slices[name], right.slices[name]) for name in left.slices)
        )

    @staticmethod
    def check_streams(config: Any) -> None:
        """Same seed same stream, other seeds and purposes other streams, evaluation fixed, resume exact."""
        task, twin, other = config.build(3), config.build(3), config.build(4)
        first = [task.train_batch(8) for _ in range(3)]
        assert all(Laws.same(batch, twin.train_batch(8)) for batch in first), "same seed must give the same batches"
        assert not Laws.same(first[0], first[1]), "the stream must move"
        assert not Laws.same(first[0], other.train_batch(8)), "another seed must give another stream"

        fixed = list(task.eval_batches(2, 8))
        assert all(Laws.same(*pair) for pair in zip(fixed, task.eval_batches(2, 8), strict=True)), (
            "evaluation must be fixed"
        )
        assert all(Laws.same(*pair) for pair in zip(fixed, twin.eval_batches(2, 8), strict=True))
        assert not Laws.same(fixed[0], fixed[1])
        assert not any(Laws.same(left, right) for left in fixed for right in first), (
            "train and eval must be different streams"
        )
        assert not Laws.same(fixed[0], next(iter(task.eval_batches(2, 8, seed_offset=1)))), "seed_offset must matter"

        state = json.loads(json.dumps(task.state_dict()))
        ahead = [task.train_batch(n) for n in (8, 4, 8)]
        resumed = config.build(3)
        resumed.load_state_dict(state)
        assert all(Laws.same(batch, resumed.train_batch(len(batch.tokens))) for batch in ahead), "resume must be exact"

    @staticmethod
    def check_fields(config: Any, changed: dict[str, Any]) -> None:
        """Every field of the config, changed to `changed[name]`, changes the batch."""
        names = {field.name for field in dataclasses.fields(config)}
        assert names == changed.keys(), "give one changed value for every field, and for nothing else"
        batch = config.build(0).train_batch(8)
        for name, value in changed.items():
            varied = dataclasses.replace(config, **{name: value}).build(0).train_batch(8)
            assert not Laws.same(batch, varied), f"{name}={value!r} changes nothing"

    @staticmethod
    def check_batch(task: Task, batch: Batch, n: int) -> None:
        """Shapes, dtypes and ranges that `Batch` promises."""
        assert batch.tokens.shape == batch.hint.shape == (n, task.length)
        assert batch.at.shape == batch.targets.shape and batch.at.shape[0] == n
        assert batch.tokens.dtype == batch.at.dtype == batch.targets.dtype == torch.int64
        assert batch.hint.dtype == torch.bool
        assert batch.tokens.min() >= 0 and batch.tokens.max() < task.vocab
        assert batch.targets.min() >= 0 and batch.targets.max() < task.vocab
        assert batch.at.min() >= 0 and batch.at.max() < task.length
        assert (batch.at.diff(dim=1) > 0).all(), "positions must ascend"
        for name, value in batch.slices.items():
            assert value.shape == batch.at.shape and value.dtype == torch.int64, name
        assert all(task.decode_token(token).isprintable() for token in range(task.vocab))


@pytest.fixture(scope="session")
def laws() -> Laws:
    """The laws that every task obeys."""
    return Laws()
