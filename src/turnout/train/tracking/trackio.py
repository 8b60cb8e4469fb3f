"""trackio: a local database (`TRACKIO_DIR`, by default below ~/.cache); look at it with `trackio show`."""

from __future__ import annotations

from collections.abc import Mapping

from turnout.train.rundir import RunDir
from turnout.train.tracking import PROJECT, flat_config


class Adapter:
    """Logs to the local project `turnout`.

    Args:
        run: the run folder.
        step: unused; every line carries its own.
    """

    def __init__(self, run: RunDir, step: int) -> None:
        import trackio

        self.finish_all = trackio.finish
        self.run = trackio.init(
            project=PROJECT,
            name=run.name,
            config={key: str(value) for key, value in flat_config(run).items()},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row."""
        self.run.log(dict(numbers), step=step)

    def note(self, step: int, name: str, words: str) -> None:
        """An event: a row with words."""
        self.run.log({f"event/{name}": words}, step=step)

    def finish(self, summary: Mapping[str, float]) -> None:
        """Log the closing numbers and write everything out."""
        if summary:
            self.run.log({f"summary/{name}": value for name, value in summary.items()})
        # Not the run's own: this one also forgets the run, so that nothing is printed when Python exits.
        self.finish_all()
