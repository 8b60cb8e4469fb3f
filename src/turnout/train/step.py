"""One optimisation step, eager or replayed as one CUDA graph; statistics stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import RoutingMode
from turnout.tasks import Batch
from turnout.train.config import OptimConfig
from turnout.train.objective import Objective
from turnout.train.optimizers import build_optimizer
from turnout.train.penalty import penalty
from turnout.train.schedule import Schedule

# Eager steps before a capture: they create optimiser state and let libraries allocate their workspaces.
_WARMUP_STEPS = 3
_PRESSURES = ("cost", "quadratic", "target", "undecided")
_SCALARS = ("steps", "loss", "task_loss", "penalty", "correct", "targets", "grad_norm", "dropped", "decided")


class Stepper:
    """Runs optimisation steps on a model and adds up what they show.

    Args:
        model: on its device.
        config: batch handling, clipping, precision.
        generator: of the gate noise, on the model's device.
        cuda_graph: replay steps as CUDA graphs (ignored on a CPU, and where the host takes part in a step: Muon, whose
            learning rate is a number, and activation checkpointing, which rewinds the gate noise).
    """

    def __init__(
        self, model: CausalLM, config: OptimConfig, *, generator: torch.Generator, cuda_graph: bool = True
    ) -> None:
        self.model, self.config, self.generator = model, config, generator
        self.device = model.embed.weight.device
        on_gpu = self.device.type == "cuda"
        self.graphs = cuda_graph and on_gpu and config.optimizer == "adamw" and not config.checkpointing
        self.optimizer = build_optimizer(model, config, capturable=on_gpu)
        model.checkpointing = config.checkpointing
        if config.compile and not model.compiled:
            model.compile_blocks()
        self.objective: nn.Module = Objective(model, config)
        layers = sum(kind == "R" for kind in model.config.layer_kinds)
        self.sums = {name: torch.zeros((), device=self.device) for name in _SCALARS}
        self.usage = torch.zeros(layers, device=self.device)
        self.most_rows = torch.zeros((), device=self.device, dtype=torch.int64)
        self.controls = {name: torch.zeros((), device=self.device) for name in _PRESSURES}
        self._graph: tuple[Any, torch.cuda.CUDAGraph, list[Batch]] | None = None
        self._warm: tuple[Any, int] = (None, 0)

    def step(self, batches: list[Batch], schedule: Schedule, mode: RoutingMode, lr: float) -> None:
        """One step over `batches` (micro-batches, already on the device). Never waits for the GPU."""
        for name, control in self.controls.items():
            control.fill_(getattr(schedule, name))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["factor"])
            else:
                group["lr"] = lr * group["factor"]
        if not self.graphs:
            self._work(batches, schedule.penalty, mode)
            return
        key = (schedule.penalty, mode.skip, mode.capacity, tuple(b.tokens.shape for b in batches))
        if self._graph is not None and self._graph[0] == key:
            _, graph, static = self._graph
            for old, new in zip(static, batches, strict=True):
                _copy(old, new)
            graph.replay()
        elif self._warm[0] == key and self._warm[1] >= _WARMUP_STEPS:
            self._capture(key, batches, schedule.penalty, mode)
        else:
            self._graph = None
            self._warm = (key, self._warm[1] + 1 if self._warm[0] == key else 1)
            self._on_side_stream(lambda: self._work(batches, schedule.penalty, mode))

    def read(self) -> dict[str, Any]:
        """Averages since the last read (one synchronisation), and start again from zero.

        `usage` is what the sampled gates took, `decided` what the same logits take without noise, as evaluation does;
        `accuracy` is None when nothing had a target; `most_rows` is the largest count of rows that one sequence and
        group took in one layer.
        """
        values = {name: float(value) for name, value in self.sums.items()}
        steps = max(1.0, values["steps"])
        usage = [u / steps for u in self.usage.tolist()]
        result: dict[str, Any] = {name: values[name] / steps for name in ("loss", "task_loss", "penalty", "grad_norm")}
        result |= {
            "steps": int(values["steps"]),
            "accuracy": values["correct"] / values["targets"] if values["targets"] else None,
            "usage_layers": usage,
            "usage": sum(usage) / len(usage) if usage else None,
            "decided": values["decided"] / steps if usage else None,
            "most_rows": int(self.most_rows),
            "dropped": int(values["dropped"]),
        }
        for value in (*self.sums.values(), self.usage, self.most_rows):
            value.zero_()
        return result

    def _work(self, batches: list[Batch], kind: str, mode: RoutingMode) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            self._forward_backward(batch, kind, mode, 1 / len(batches))
        limit = self.config.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
        self.optimizer.step()
        # A norm of shards is itself a sharded tensor.
        self.sums["grad_norm"] += norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.sums["steps"] += 1

    def _forward_backward(self, batch: Batch, kind: str, mode: RoutingMode, scale: float) -> None:
        out = self.objective(batch, mode)
        task_loss = out.loss
        extra = penalty(out.routes, kind, **self.controls)
        reading_far = self.model.pattern_penalty()
        if reading_far is not None:
            extra = extra + reading_far
        loss = task_loss + extra
        (loss * scale).backward()
        with torch.no_grad():
            self.sums["loss"] += loss * scale
            self.sums["task_loss"] += task_loss * scale
            self.sums["penalty"] += extra * scale
            self.sums["correct"] += out.correct
            self.sums["targets"] += out.targets
            routes = [route for route in out.routes if route is not None]
            for i, route in enumerate(routes):
                self.usage[i] += route.taken.float().mean() * scale
                self.sums["decided"] += (route.gate > 0.5).float().mean() * (scale / len(routes))
                torch.maximum(self.most_rows, route.taken.sum(1).max(), out=self.most_rows)
                if route.dropped is not None:
                    self.sums["dropped"] += route.dropped.sum()

    def _capture(self, key: Any, batches: list[Batch], kind: str, mode: RoutingMode) -> None:
        # Replays read their inputs from these buffers; the first replay below is this very step.
        static = [_clone(batch) for batch in batches]
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self._work(static, kind, mode)
        self._graph = (key, graph, static)
        graph.replay()

    def _on_side_stream(self, work: Callable[[], None]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)


def _tensors(batch: Batch) -> list[Tensor]:
    found = [batch.tokens, batch.at, batch.targets, batch.hint]
    return found if batch.starts is None else [*found, batch.starts]


def _clone(batch: Batch) -> Batch:
    tokens, at, targets, hint, *starts = (t.clone() for t in _tensors(batch))
    return Batch(tokens=tokens, at=at, targets=targets, hint=hint, slices={}, starts=starts[0] if starts else None)


def _copy(old: Batch, new: Batch) -> None:
    for a, b in zip(_tensors(old), _tensors(new), strict=True):
        a.copy_(b, non_blocking=True)
