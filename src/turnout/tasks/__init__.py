"""Tasks: `Config.build(seed)` gives a stream of batches with targets, the oracle's hint and slices."""

from __future__ import annotations

from turnout.tasks.batch import Batch, Task, TaskConfig
from turnout.tasks.recall import RecallConfig
from turnout.tasks.recall_hard import RecallHardConfig
from turnout.tasks.text import TextConfig

__all__ = ["Batch", "RecallConfig", "RecallHardConfig", "Task", "TaskConfig", "TextConfig", "task_kinds"]

_CONFIGS: tuple[type[TaskConfig], ...] = (RecallConfig, RecallHardConfig, TextConfig)


def task_kinds() -> dict[str, type[TaskConfig]]:
    """Task config classes by their `kind`, the tag under which a run config stores them."""
    return {config.kind: config for config in _CONFIGS}
