"""One run of a pattern, with what the claims about patterns look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turnout.train.evaluate import evaluate
from turnout.train.loop import Trainer

LONGER = 4
_LONGER_SEQUENCES = 64


class _Curve:
    """Keeps the evaluations of a run."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def update(self, record: dict[str, Any]) -> None:
        if record["kind"] == "eval" and not record.get("final"):
            self.points.append((record["step"], record["loss"]))


def train_one(config: Any, device: str) -> dict[str, Any]:
    """The summary of a run, with its loss by slice, its curve, and on text an evaluation at four times the length."""
    curve = _Curve()
    trainer = Trainer(replace(config, device=device, threads=1), view=curve)
    record = trainer.train()
    record |= {"slices": trainer.last_eval["slices"], "curve": curve.points, "pattern": config.model.pattern}
    if config.task.kind == "text":
        longer = config.task.with_length(LONGER * config.task.length).build(config.seed)
        precision = config.optim.precision
        seen = evaluate(trainer.model, longer, sequences=_LONGER_SEQUENCES, batch=4, precision=precision)
        record["longer"] = {"length": longer.length, "loss": seen["loss"], "slices": seen["slices"]}
    return record
