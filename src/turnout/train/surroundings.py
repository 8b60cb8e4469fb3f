"""What a run meets outside of itself: who watches it, what stops it, and the device it gets."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from turnout.errors import ConfigError
from turnout.train.rundir import RunDir


class View(Protocol):
    """What shows progress: gets every metrics line."""

    def update(self, record: dict[str, Any]) -> None: ...


class Interrupted(Exception):
    """Ctrl-C: the interval was finished and a checkpoint written; resume to go on.

    Attributes:
        step: steps done.
        run: the folder to resume, None when there is none.
    """

    def __init__(self, step: int, run: RunDir | None) -> None:
        super().__init__(
            f"stopped after step {step}; {'resume to go on' if run else 'without a run folder it is lost'}"
        )
        self.step, self.run = step, run


def pick_device(name: str) -> torch.device:
    """The device of a config; "auto" is a GPU when there is one.

    Raises:
        ConfigError: another name; "cuda" without a GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but PyTorch sees no GPU; use device=cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
