"""Tasks: `Config.build(seed)` gives a stream of batches with targets, the oracle's hint and slices."""

from __future__ import annotations

from turnout.tasks.batch import Batch, Task, TaskConfig
from turnout.tasks.mqar import MQARConfig
from turnout.tasks.recall import RecallConfig
from turnout.tasks.recall_hard import RecallHardConfig
from turnout.tasks.retrieval import RetrievalConfig, RoutedBatch
from turnout.tasks.text import TextConfig
from turnout.tasks.trailing_mqar import TrailingMQARConfig

__all__ = [
    "Batch",
    "MQARConfig",
    "RecallConfig",
    "RecallHardConfig",
    "RetrievalConfig",
    "RoutedBatch",
    "Task",
    "TaskConfig",
    "TextConfig",
    "TrailingMQARConfig",
    "task_kinds",
]

_CONFIGS: tuple[type[TaskConfig], ...] = (
    RecallConfig,
    RecallHardConfig,
    TextConfig,
    MQARConfig,
    TrailingMQARConfig,
    RetrievalConfig,
)


def task_kinds() -> dict[str, type[TaskConfig]]:
    """Task config classes by their `kind`, the tag under which a run config stores them."""
    return {config.kind: config for config in _CONFIGS}
