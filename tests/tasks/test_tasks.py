from __future__ import annotations

import subprocess
import sys

import pytest

from turnout.tasks import task_kinds


def test_every_kind_names_its_class() -> None:
    kinds = task_kinds()
    assert kinds.keys() == {"recall", "recall_hard", "text", "mqar", "trailing_mqar", "retrieval"}
    assert all(config.kind == kind for kind, config in kinds.items())


@pytest.mark.parametrize("kind", ["recall", "recall_hard", "mqar", "trailing_mqar", "retrieval"])
def test_defaults_build(kind: str) -> None:
    task = task_kinds()[kind]().build(0)
    assert task.train_batch(2).tokens.shape == (2, task.length)


def test_reading_task_configs_does_not_import_torch() -> None:
    code = "import sys, turnout.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
