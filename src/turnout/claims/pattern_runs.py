"""One run of a pattern, with what the claims about patterns look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turnout.probe.distance import attention_distances
from turnout.train.evaluate import evaluate
from turnout.train.loop import Trainer

# So many times the trained length: 4,096 tokens.
LONGER = 4
_LONGER_SEQUENCES = 64
# What the attention of a dense model is held against.
CUTS = (
    "window:size=64",
    "sinks:size=60,sinks=4",
    "window:size=256",
    "alibi",
    "forget:gate=fixed,shortest=4,longest=64",
)


class _Curve:
    """Keeps the evaluations of a run."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def update(self, record: dict[str, Any]) -> None:
        if record["kind"] == "eval" and not record.get("final"):
            self.points.append((record["step"], record["loss"]))


def look(trainer: Trainer) -> dict[str, Any]:
    """What the claims about patterns want to know of a trained run: loss by slice, distances, and a longer length."""
    config, text = trainer.config, trainer.config.task.kind == "text"
    found: dict[str, Any] = {"slices": trainer.last_eval["slices"], "pattern": config.model.pattern}
    if text and config.model.pattern == "full":
        found["distances"] = _distances(trainer, CUTS)
    length = LONGER * config.task.length
    longer = config.task.with_length(length).build(config.seed)
    precision = config.optim.precision
    seen = evaluate(trainer.model, longer, sequences=_LONGER_SEQUENCES, batch=4, precision=precision)
    found["longer"] = {"length": length, "loss": seen["loss"], "accuracy": seen["accuracy"], "slices": seen["slices"]}
    return found


def train_one(config: Any, device: str) -> dict[str, Any]:
    """The summary of a run with its curve of evaluations."""
    curve = _Curve()
    trainer = Trainer(replace(config, device=device, threads=1), view=curve)
    record = trainer.train()
    return record | {"slices": trainer.last_eval["slices"], "curve": curve.points, "pattern": config.model.pattern}


def _distances(trainer: Trainer, cuts: tuple[str, ...]) -> dict[str, Any]:
    """Spans by domain and what patterns would cut from the attention of this model."""
    found = attention_distances(trainer.model, trainer.task, patterns=cuts, sequences=32)
    return {
        "edges": found.edges,
        "share": {name: mass.mean((0, 1)).tolist() for name, mass in found.mass.items()},
        "span": {name: found.mean_span(name) for name in found.mass},
        "lost": found.lost,
    }
