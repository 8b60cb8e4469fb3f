"""Weights & Biases, offline: files in `<run>/wandb`, uploaded when and if you say `wandb sync`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from turnout.train.rundir import RunDir
from turnout.train.tracking import PROJECT, flat_config


class Adapter:
    """Logs to an offline run.

    Args:
        run: the run folder.
        step: unused; steps are a metric of their own, so that a resumed run may repeat some.
    """

    def __init__(self, run: RunDir, step: int) -> None:
        import wandb

        self.run = wandb.init(
            project=PROJECT,
            name=run.name,
            # The same run after a resume.
            id=re.sub(r"[^A-Za-z0-9_-]", "-", run.name)[:64],
            resume="allow",
            dir=str(run.path),
            config=flat_config(run),
            mode="offline",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row."""
        self.run.log({"step": step, **numbers})

    def note(self, step: int, name: str, words: str) -> None:
        """An event: a row with words."""
        self.run.log({"step": step, f"event/{name}": words})

    def finish(self, summary: Mapping[str, float]) -> None:
        """Keep the closing numbers and write everything out."""
        self.run.summary.update(dict(summary))
        self.run.finish()
