"""Evaluation: loss, accuracy, usage by layer, slices, and the gate map."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from turnout.models.causal_lm import CausalLM, Output
from turnout.routers.mode import RoutingMode
from turnout.tasks import Batch, Task

MAX_MAPPED_LENGTH = 4096
MAX_MAP_SEQUENCES = 8


class _Tally:
    """Sums of one evaluation; everything float64 on the CPU."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names = names
        self.loss = self.correct = self.targets = self.sequences = 0.0
        self.usage: list[float] = []
        self.gates = 0.0
        self.slices: dict[str, dict[int, list[float]]] = {}
        self.most_rows = 0

    def add(self, batch: Batch, out: Output) -> None:
        real = batch.at >= 0
        logits = out.logits.float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch.targets.clamp(min=0), reduction="none")
        right = (logits.argmax(-1) == batch.targets) & real
        losses = torch.where(real, losses, 0.0)
        self.loss += float(losses.double().sum())
        self.correct += int(right.sum())
        self.targets += int(real.sum())
        n = batch.tokens.shape[0]
        self.sequences += n
        routes = [route for route in out.routes if route is not None]
        self.usage = self.usage or [0.0] * len(routes)
        for i, route in enumerate(routes):
            self.usage[i] += float(route.taken.double().mean()) * n
            self.gates += int(route.taken.sum())
            self.most_rows = max(self.most_rows, int(route.taken.sum(1).max()))
        for name, values in batch.slices.items():
            self._add_slice(name, values[real], right[real], losses[real])

    def _add_slice(self, name: str, values: Tensor, right: Tensor, losses: Tensor) -> None:
        groups = self.slices.setdefault(name, {})
        kinds, index = values.unique(return_inverse=True)
        counts = torch.bincount(index, minlength=len(kinds)).tolist()
        hits = torch.bincount(index, weights=right.double(), minlength=len(kinds)).tolist()
        sums = torch.bincount(index, weights=losses.double(), minlength=len(kinds)).tolist()
        for kind, *numbers in zip(kinds.tolist(), counts, hits, sums, strict=True):
            entry = groups.setdefault(kind, [0.0, 0.0, 0.0])
            groups[kind] = [a + b for a, b in zip(entry, numbers, strict=True)]

    def result(self) -> dict[str, Any]:
        targets, n = max(1.0, self.targets), max(1.0, self.sequences)
        usage = [u / n for u in self.usage]
        return {
            "n": int(self.targets),
            "sequences": int(self.sequences),
            "loss": self.loss / targets,
            "accuracy": self.correct / targets,
            "correct": int(self.correct),
            "usage": sum(usage) / len(usage) if usage else None,
            "usage_layers": usage,
            "gates_per_seq": self.gates / n,
            "most_rows": self.most_rows,
            "slices": {
                name: [
                    {"value": self._name(name, value), "n": int(count), "accuracy": hits / count, "loss": loss / count}
                    for value, (count, hits, loss) in sorted(groups.items())
                ]
                for name, groups in self.slices.items()
            },
        }

    def _name(self, slice_name: str, value: int) -> int | str:
        """The name of a group where the task has one, else its number."""
        return self.names[slice_name][value] if slice_name in self.names else value


def _forward(model: CausalLM, batch: Batch, precision: str) -> Output:
    every = batch.at.shape[1] == batch.tokens.shape[1]
    half = precision in ("bf16", "bf16_stream")
    # Shapes of evaluation are many and seen once: compiling each would take longer than running it.
    stance = torch.compiler.set_stance("force_eager") if model.compiled else contextlib.nullcontext()
    with stance, torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=half):
        return model(
            batch.tokens, mode=RoutingMode(starts=batch.starts), at=None if every else batch.at, hint=batch.hint
        )


@torch.no_grad()
def evaluate(
    model: CausalLM, task: Task, *, sequences: int, batch: int, precision: str = "fp32", seed_offset: int = 0
) -> dict[str, Any]:
    """Score `model` with its deterministic decisions on fixed sequences of the task.

    Args:
        sequences: at least this many (rounded up to whole batches).
        batch: sequences a forward pass.
        seed_offset: another number gives another fixed set (0 steers training, 1 is for final numbers).
    Returns:
        The fields of an "eval" metrics line: n targets, loss, accuracy, usage by layer, gates per sequence, slices.
    """
    was_training = model.training
    model.eval()
    tally = _Tally(getattr(task, "slice_names", {}))
    device = model.embed.weight.device
    for item in _batches(task, sequences, batch, seed_offset):
        moved = item.to(device)
        tally.add(moved, _forward(model, moved, precision))
    model.train(was_training)
    return tally.result()


@torch.no_grad()
def gate_map(model: CausalLM, task: Task, *, sequences: int, batch: int, precision: str = "fp32") -> dict[str, Any]:
    """Where attention was spent: mean gate by layer and position, and single sequences with their tokens.

    Sequences longer than 4,096 tokens are averaged into bins and shown without their tokens.
    """
    was_training = model.training
    model.eval()
    device = model.embed.weight.device
    total: Tensor | None = None
    seen = 0
    shown: list[dict[str, Any]] = []
    for item in _batches(task, sequences, batch, 0):
        moved = item.to(device)
        out = _forward(model, moved, precision)
        routes = [route for route in out.routes if route is not None]
        if not routes:
            break
        taken = torch.stack([route.taken.any(-1) for route in routes], dim=1).cpu()
        gate = torch.stack([route.gate.amax(-1) for route in routes], dim=1).float().cpu()
        total = taken.double().sum(0) if total is None else total + taken.double().sum(0)
        seen += taken.shape[0]
        if len(shown) < MAX_MAP_SEQUENCES and task.length <= MAX_MAPPED_LENGTH:
            predictions = out.logits.argmax(-1).cpu()
            shown += [_sequence(task, item, taken, gate, predictions, b) for b in range(taken.shape[0])]
    model.train(was_training)
    layers = [i for i, kind in enumerate(model.config.layer_kinds) if kind == "R"]
    result: dict[str, Any] = {"length": task.length, "layers": len(layers), "layer_index": layers, "sequences": []}
    result["groups"] = model.config.routing_groups
    if total is None:
        return result | {"mean": []}
    mean = total / seen
    bins = -(-task.length // MAX_MAPPED_LENGTH)
    if bins > 1:
        mean = torch.nn.functional.avg_pool1d(mean[None], bins, ceil_mode=True, count_include_pad=False)[0]
        result["bin"] = bins
    return result | {
        "mean": [[round(v, 5) for v in row] for row in mean.tolist()],
        "n": seen,
        "sequences": shown[:MAX_MAP_SEQUENCES],
    }


def _sequence(task: Task, batch: Batch, taken: Tensor, gate: Tensor, predictions: Tensor, b: int) -> dict[str, Any]:
    real = batch.at[b] >= 0
    return {
        "tokens": [task.decode_token(int(t)) for t in batch.tokens[b]],
        "taken": taken[b].int().tolist(),
        "gate": [[round(v, 3) for v in row] for row in gate[b].tolist()],
        "at": batch.at[b][real].tolist(),
        "targets": [task.decode_token(int(t)) for t in batch.targets[b][real]],
        "predictions": [task.decode_token(int(t)) for t in predictions[b][real]],
    }


def _batches(task: Task, sequences: int, batch: int, seed_offset: int) -> Iterator[Batch]:
    return task.eval_batches(-(-sequences // batch), batch, seed_offset)
