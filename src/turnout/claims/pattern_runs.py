"""One run of a pattern, with what the claims about patterns look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from turnout.probe.causality import certify
from turnout.probe.distance import attention_distances
from turnout.probe.recall import attention_recall
from turnout.tasks import Batch, Task
from turnout.tasks.slices import floor_power_of_two
from turnout.train.evaluate import evaluate
from turnout.train.loop import Trainer

# So many times the trained length: 4,096 tokens.
LONGER = 4
_LONGER_SEQUENCES = 64
_EVIDENCE_SEQUENCES = 256
# Tokens of a certificate: several blocks of 16 beyond those that every row reads.
_CERTIFIED = 160
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
    found: dict[str, Any] = {"slices": dict(trainer.last_eval["slices"]), "pattern": config.model.pattern}
    if text:
        found["slices"] |= _by_evidence(trainer)
    if text and config.model.pattern == "full":
        # Compiled blocks would not stop where a probe looks.
        with torch.compiler.set_stance("force_eager"):
            found["distances"] = _distances(trainer, CUTS)
    length = LONGER * config.task.length
    longer = config.task.with_length(length).build(config.seed)
    precision = config.optim.precision
    seen = evaluate(trainer.model, longer, sequences=_LONGER_SEQUENCES, batch=4, precision=precision)
    found["longer"] = {"length": length, "loss": seen["loss"], "accuracy": seen["accuracy"], "slices": seen["slices"]}
    return found


def look_at_choice(trainer: Trainer, specs: Sequence[str], *, near: int) -> dict[str, Any]:
    """Loss by slice, the causality certificate, and of a dense model the share of its attention that each selector's
    keys hold."""
    found: dict[str, Any] = {"slices": trainer.last_eval["slices"] | _by_evidence(trainer)}
    # Compiled blocks would not stop where a probe looks.
    with torch.compiler.set_stance("force_eager"):
        if trainer.config.model.pattern == "full":
            seen = attention_recall(trainer.model, trainer.task, patterns=specs, near=near)
            found["recall"] = {spec: asdict(recall) for spec, recall in seen.items()}
        certificate = certify(trainer.model, length=_CERTIFIED, positions=4)
    return found | {"causal": certificate.causal, "certificate": str(certificate)}


def evidence_distance(tokens: Tensor, gram: int = 4) -> Tensor:
    """Tokens back to the last place where the same `gram` tokens stood, int64 [B, T]; 0 = nowhere before.

    What followed there is the nearest evidence of what follows here. Cost: O(B·T²).
    """
    length = tokens.shape[1]
    same = tokens[:, :, None] == tokens[:, None, :]
    match = same.tril(-1)
    for i in range(1, gram):
        match[:, i:, i:] &= same[:, : length - i, : length - i]
        # Fewer tokens than a gram repeat nothing.
        match[:, :i] = False
        match[:, :, :i] = False
    at = torch.arange(length, device=tokens.device)
    last = torch.where(match, at, -1).amax(2)
    return torch.where(last >= 0, at - last, 0)


class _ByEvidence:
    """A task whose evaluation is split by the distance of the evidence."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def eval_batches(self, n_batches: int, n: int, seed_offset: int = 0) -> Iterator[Batch]:
        for batch in self.task.eval_batches(n_batches, n, seed_offset):
            far = evidence_distance(batch.tokens)
            bucket = torch.where(far > 0, floor_power_of_two(far.clamp(min=1)), 0)
            yield replace(batch, slices={"evidence": bucket})


def _by_evidence(trainer: Trainer) -> dict[str, Any]:
    """Loss by the distance of the evidence; every position of a text has a target."""
    task, count = _ByEvidence(trainer.task), min(_EVIDENCE_SEQUENCES, trainer.config.loop.final_sequences)
    seen = evaluate(trainer.model, task, sequences=count, batch=16, precision=trainer.config.optim.precision)  # type: ignore[arg-type]
    slices: dict[str, Any] = seen["slices"]
    return slices


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
