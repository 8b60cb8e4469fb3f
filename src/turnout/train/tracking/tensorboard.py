"""TensorBoard: event files in `<run>/tensorboard`; look at them with `tensorboard --logdir runs`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from turnout.train.rundir import RunDir
from turnout.train.tracking import flat_config


class Adapter:
    """Writes event files.

    Args:
        run: the run folder.
        step: events of later steps, written before a resume, are forgotten.
    """

    def __init__(self, run: RunDir, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)
        lines = (f"    {key}: {json.dumps(value)}" for key, value in flat_config(run).items())
        self.writer.add_text("config", "\n".join(lines), step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point a number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def note(self, step: int, name: str, words: str) -> None:
        """An event, as text."""
        self.writer.add_text(f"event/{name}", words, step)

    def finish(self, summary: Mapping[str, float]) -> None:
        """Write the closing numbers and close the file."""
        for name, value in summary.items():
            self.writer.add_scalar(f"summary/{name}", value)
        self.writer.close()
