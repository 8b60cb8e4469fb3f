"""The training loop: phases, evaluations, checkpoints, and a run folder that a kill at any moment leaves resumable."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from turnout.config import from_dict, to_dict
from turnout.errors import CheckpointError, ConfigError, TurnoutError
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import RoutingMode
from turnout.tasks import Batch, Task, TextConfig
from turnout.train import checkpoint
from turnout.train.config import RunConfig
from turnout.train.evaluate import evaluate, gate_map
from turnout.train.jsonfile import read_json
from turnout.train.kept import KeptWeights
from turnout.train.manifest import build_manifest, git_commit
from turnout.train.rundir import RunDir
from turnout.train.schedule import Interval, wsd
from turnout.train.schedules import build_schedule
from turnout.train.step import Stepper
from turnout.train.surroundings import Interrupted, View, pick_device
from turnout.train.throughput import Throughput
from turnout.train.tracking import tracked


class Trainer:
    """Trains one `RunConfig`; with a run folder it writes everything down, without one it only returns the summary.

    Args:
        config: of the run.
        run: folder to write to, or None.
        view: gets every metrics line; None shows nothing.
    """

    def __init__(self, config: RunConfig, run: RunDir | None = None, view: View | None = None) -> None:
        self.config, self.run_dir, self.view = config, run, view
        self.device = pick_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.optim.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        self.schedule = build_schedule(config.schedule)
        self.task = self._build_task()
        self.model = CausalLM(config.model, vocab=self.task.vocab, seed=config.seed).to(self.device)
        self._spread()
        self._check_task()
        self.gates = torch.Generator(self.device).manual_seed(config.seed * 7919 + 17)
        self.stepper = Stepper(self.model, config.optim, generator=self.gates, cuda_graph=config.loop.cuda_graph)
        self.throughput = Throughput(self.model, self.device)
        self.kept = KeptWeights(self.model, self.stepper.optimizer)
        self.step_count = 0
        self.skipping = False
        self.capacity: int | None = None
        self.saved_at = 0
        self.clock: dict[str, list[float]] = {"dense": [0.0, 0.0], "skipping": [0.0, 0.0]}
        self.stages: list[dict[str, Any]] = []
        self.last_eval: dict[str, Any] = {}
        self.last_ms: float | None = None
        self._stop = False

    def _spread(self) -> None:
        """Spread the model over processes; here there is one."""

    def _build_task(self) -> Task:
        config = self.config.task
        if self.schedule.length not in (None, config.length):
            config = config.with_length(self.schedule.length)
        return config.build(self.config.seed)

    def _check_task(self) -> None:
        """Refuse what the task cannot serve: an oracle without hints, an accuracy to reach without one."""
        solve_at = getattr(self.config.schedule, "solve_at", None)
        if self.task.chance is None and solve_at is not None:
            raise ConfigError(
                f"schedule.solve_at={solve_at} waits for an accuracy, which task "
                f"{self.config.task.kind!r} does not have; set schedule.solve_at to none, or use the budget schedule"
            )
        if getattr(self.config.task, "packing", False):
            self.model.check_packing()
        self.model.check_length(max([self.config.task.length, *getattr(self.config.schedule, "lengths", ())]))
        needs = [b for b in self.model.blocks if getattr(getattr(b.mixer, "router", None), "needs_hint", False)]
        if needs and not self.task.has_oracle:
            raise ConfigError(
                f"router {self.config.model.routing.router!r} needs a task that knows where attention is needed, but "
                f"task {self.config.task.kind!r} has no oracle; use recall or recall_hard, or another router"
            )

    def batch_size(self) -> int:
        """Sequences a micro-batch at the present length."""
        optim = self.config.optim
        if not optim.max_tokens:
            return optim.batch
        return max(1, min(optim.batch, optim.max_tokens // self.task.length))

    def train(self, *, stop_after: int | None = None) -> dict[str, Any]:
        """Train to the end of the schedule and return the summary.

        Args:
            stop_after: stop (without finishing) once this many steps are done; for tests and timing.
        Raises:
            Interrupted: Ctrl-C, after the step was finished and saved.
        """
        loop = self.config.loop
        self.model.train()
        if self.step_count == 0:
            self._event("phase", f"start in {self.schedule.phase}")
        with self._catch_interrupt():
            while not self.schedule.done:
                began, first = time.perf_counter(), self.step_count
                for _ in range(min(loop.log_every, self.schedule.steps_left() or loop.log_every)):
                    self._one_step()
                # Reading waits for the device, so that queued steps are not counted as done.
                seen = self._read()
                self._after_interval(seen, time.perf_counter() - began, self.step_count - first)
                if stop_after is not None and self.step_count >= stop_after:
                    return {}
                if self._asked_to_stop():
                    self.save()
                    raise Interrupted(self.step_count, self.run_dir)
        return self._finish()

    def _read(self) -> dict[str, Any]:
        """What the steps since the last look showed, in all processes."""
        return self.stepper.read()

    def _asked_to_stop(self) -> bool:
        return self._stop

    def _draw(self, size: int) -> Batch:
        """The next micro-batch, or this process's part of it."""
        return self.task.train_batch(size)

    def _one_step(self) -> None:
        size, optim = self.batch_size(), self.config.optim
        batches = [self._to_device(self._draw(size)) for _ in range(optim.accumulate)]
        mode = RoutingMode(skip=self.skipping, capacity=self.capacity, sample=True, generator=self.gates)
        self.stepper.step(batches, self.schedule, mode, self._lr())
        self.step_count += 1

    def _to_device(self, batch: Batch) -> Batch:
        return batch if self.device.type == "cpu" else batch.to(self.device, non_blocking=True)

    def _lr(self) -> float:
        optim = self.config.optim
        lr = optim.lr
        if optim.warmup and self.step_count < optim.warmup:
            return lr * (self.step_count + 1) / optim.warmup
        if optim.decay == "cosine":
            return lr * self.schedule.anneal()
        if optim.decay == "wsd":
            return lr * wsd(self.step_count / self.schedule.total_steps)
        return lr

    def _after_interval(self, seen: dict[str, Any], seconds: float, steps: int) -> None:
        key = "skipping" if self.skipping else "dense"
        self.clock[key][0] += seconds
        self.clock[key][1] += steps
        self.last_ms = 1e3 * seconds / steps
        length, size = self.task.length, self.batch_size() * self.config.optim.accumulate
        layers = len(seen["usage_layers"])
        slots = layers * length * self.config.model.routing_groups
        pace = steps * size * length / seconds
        self._log(
            {
                "kind": "train", "step": self.step_count, "phase": self.schedule.phase, "lambda": self.schedule.cost,
                **{k: v for k, v in seen.items() if k != "steps"},
                "gates_per_seq": None if seen["usage"] is None else seen["usage"] * slots,
                "skipping": self.skipping, "capacity": self.capacity, "length": length,
                "ms": self.last_ms, "tokens_per_s": pace, "lr": self._lr(),
                **self.throughput.record(pace, length, seen["usage_layers"], skipping=self.skipping),
            }
        )  # fmt: skip
        self._check_finite(seen, steps)
        graded = seen["accuracy"] if self.task.chance is not None else None
        interval = Interval(steps=steps, loss=seen["task_loss"], accuracy=graded, usage=seen["decided"] or 0.0)
        events = self.schedule.on_interval(interval)
        self._answer_request()
        if self.step_count % self.config.loop.eval_every < steps:
            events += self._evaluate()
            self._answer_request()
        for event in events:
            self._event("phase", event)
        self._choose_execution(seen)
        self._follow_length()
        every = self.config.loop.checkpoint_every
        if every and self.step_count - self.saved_at >= every and not self.schedule.done:
            self.save()

    def _check_finite(self, seen: dict[str, Any], steps: int) -> None:
        """Stop before anything is saved when the weights are, or are about to be, no numbers."""
        wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(seen[name])]
        if not wrong:
            return
        kept = "nothing was saved yet"
        if self.run_dir is not None and self.saved_at:
            kept = (
                f"the checkpoint of step {self.saved_at} in {self.run_dir.checkpoint_dir} is kept; --resume repeats it"
            )
        raise TurnoutError(
            f"{wrong[0]} is {seen[wrong[0]]} between steps {self.step_count - steps + 1} and {self.step_count}; {kept};"
            " lower optim.lr or use precision=fp32"
        )

    def _answer_request(self) -> None:
        """Keep or restore the weights if the schedule asks for it."""
        if self.schedule.request == "keep":
            self.kept.keep()
        elif self.schedule.request == "restore":
            self.kept.restore()
        self.schedule.request = ""

    def _choose_execution(self, seen: dict[str, Any]) -> None:
        """Enter or leave the skipping phase, and size its capacity, from the usage of the last interval."""
        usage = seen["usage_layers"]
        below = self.config.loop.skip_below
        if not usage:
            return
        skipping = max(usage) < (1.5 * below if self.skipping else below) and self.schedule.phase != "explore"
        learned = any(getattr(getattr(b.mixer, "router", None), "learned", False) for b in self.model.blocks)
        self.skipping = (skipping and self.schedule.content) or (not learned and max(usage) < below)
        if self.config.loop.capacity is not None:
            self.capacity = self.config.loop.capacity
        elif self.skipping and self._static_shapes():
            wanted = 2 ** max(3, math.ceil(math.log2(max(1, 2 * seen["most_rows"]))))
            wanted = min(wanted, self.task.length)
            # Grow at once; shrink only by a factor of four, because every new shape is captured again.
            if self.capacity is None or wanted > self.capacity or wanted * 4 <= self.capacity:
                self.capacity = wanted
        else:
            self.capacity = None

    def _static_shapes(self) -> bool:
        """Whether the number of rows must be known before they are."""
        return self.device.type == "cuda"

    def _follow_length(self) -> None:
        if self.schedule.done or self.schedule.length in (None, self.task.length):
            return
        self._evaluate(final=True)
        state = self.task.state_dict()
        self.task = self._build_task()
        self.task.load_state_dict(state)

    def _evaluate(self, *, final: bool = False) -> list[str]:
        loop = self.config.loop
        wanted, tokens = (loop.final_sequences, 2**26) if final else (loop.eval_sequences, 2**23)
        # Long sequences are graded on fewer of them, so that grading does not outlast training.
        count = min(wanted, max(256, tokens // self.task.length))
        size = max(1, min(count, self._eval_batch()))
        precision = self.config.optim.precision
        seen = evaluate(self.model, self.task, sequences=count, batch=size, precision=precision, seed_offset=int(final))
        where = {"step": self.step_count, "phase": self.schedule.phase}
        record = {"kind": "eval", **where, "length": self.task.length, **seen}
        if final:
            record["final"] = True
            kept = ("length", "accuracy", "n", "correct", "loss", "usage", "gates_per_seq", "most_rows")
            self.stages.append({k: record[k] for k in kept} | {"step": self.step_count, "ms_per_step": self.last_ms})
        self._log(record)
        if self._draws_gates():
            sequences = max(1, min(64, count))
            batch = min(size, sequences)
            gates = gate_map(self.model, self.task, sequences=sequences, batch=batch, precision=precision)
            if self.run_dir is not None:
                self.run_dir.write_gates({**where, **gates}, final=final)
        self.last_eval = record
        graded = seen["accuracy"] if self.task.chance is not None else None
        return [] if final else self.schedule.on_eval(graded, seen["loss"])

    def _draws_gates(self) -> bool:
        return self.run_dir is not None

    def _eval_batch(self) -> int:
        tokens, numbers = (2**18, 2**30) if self.device.type == "cuda" else (2**15, 2**27)
        # Logits of all tokens of a batch are there at once.
        return max(1, min(tokens, numbers // self.task.vocab) // self.task.length)

    def _finish(self) -> dict[str, Any]:
        # A run that was resumed after its last step has been through this.
        if self.schedule.phase in ("hold", "settle") and self.kept.copies and self.saved_at != self.step_count:
            self._end_content()
        # A kill from here on costs no step: resuming repeats the final evaluation and what follows it.
        self.save()
        self._evaluate(final=True)
        summary = self.summary()
        weights = self._weights()
        if self.run_dir is not None:
            checkpoint.save_tensors(self.run_dir.model_path, weights)
            if self.config.loop.savings:
                from turnout.bench.savings import measure_run

                self.run_dir.write_json("savings.json", measure_run(self.model, self.config, self.task, summary))
            self.run_dir.write_summary(summary)
        return summary

    def _end_content(self) -> None:
        """Let the guard look at the last steps too, and end with the kept weights if it objects."""
        if self.last_eval.get("step") != self.step_count:
            self._evaluate()
        if not self.schedule.content:
            self.kept.restore()
            self._event("restore", "the guard objects to the last weights: ending with the kept ones")

    def summary(self) -> dict[str, Any]:
        """One flat record of the run and its last evaluation."""
        last, config = self.last_eval, self.config
        per_step = {k: 1e3 * s / n if n else None for k, (s, n) in self.clock.items()}
        routed = "R" in config.model.layer_kinds
        unrouted = {"A": "dense", "L": "local"}.get(config.model.layout, "static_hybrid")
        arm = config.model.routing.router if routed else unrouted
        return {
            "name": self.run_dir.path.name if self.run_dir else config.name, "task": config.task.kind,
            "length": self.task.length, "router": config.model.routing.router if routed else None,
            "local": config.model.local, "layout": config.model.layer_kinds, "arm": arm, "seed": config.seed,
            "steps": self.step_count, "accuracy": last["accuracy"], "loss": last["loss"], "usage": last["usage"],
            "usage_layers": last["usage_layers"], "gates_per_seq": last["gates_per_seq"],
            "most_rows": last["most_rows"], "n_eval": last["n"], "correct": last["correct"], "chance": self.task.chance,
            "train_s": sum(s for s, _ in self.clock.values()), "ms_per_step_dense": per_step["dense"],
            "ms_per_step_skipping": per_step["skipping"], "params": sum(p.numel() for p in self.model.parameters()),
            "device": self.device.type, "commit": git_commit(), "solved": self.schedule.solved,
            "stages": self.stages,
        }  # fmt: skip

    def _weights(self) -> dict[str, torch.Tensor]:
        """All weights, whole."""
        return self.model.state_dict()

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside counters."""
        return {
            **checkpoint.with_prefix("model", self.model.state_dict()),
            **checkpoint.flatten_optimizer(self.stepper.optimizer, self.model.named_parameters()),
            **checkpoint.flatten_generators({"gates": self.gates}),
            **self.kept.tensors(),
        }

    def save(self) -> None:
        """Write a checkpoint; resuming from it repeats what an uninterrupted run would do, bit for bit on a CPU."""
        if self.run_dir is None:
            return
        self.run_dir.sync()
        checkpoint.save(self.run_dir.checkpoint_dir, self.step_count, self._tensors(), self._state())
        self.saved_at = self.step_count

    def _state(self) -> dict[str, Any]:
        """Counters of a checkpoint: what JSON holds."""
        return {
            "schedule": self.schedule.state_dict(), "task": self.task.state_dict(), "skipping": self.skipping,
            "capacity": self.capacity, "clock": self.clock, "stages": self.stages, "last_ms": self.last_ms,
            "metrics": 0 if self.run_dir is None else self.run_dir.position(),
        }  # fmt: skip

    def load(self) -> None:
        """Continue from the folder's checkpoint; metrics written after it are forgotten and written again.

        Raises:
            CheckpointError: none there, damaged, or of another model.
        """
        if self.run_dir is None:
            raise CheckpointError("no run folder to resume from; give the Trainer one")
        if not checkpoint.exists(self.run_dir.checkpoint_dir):
            # Killed before the first checkpoint: start over in the same folder.
            self.run_dir.rewind(-1)
            return
        if "parts" in read_json(self.run_dir.checkpoint_dir / "latest.json"):
            raise CheckpointError(
                f"the checkpoint in {self.run_dir.checkpoint_dir} was written by several processes; go on with "
                "torchrun --nproc-per-node N -m turnout train --resume ..., for any N from 1 on"
            )
        step, tensors, state = checkpoint.load(self.run_dir.checkpoint_dir, str(self.device))
        weights = checkpoint.section("model", tensors)
        checkpoint.check_tensors(self.model.state_dict(), weights)
        self.model.load_state_dict(weights)
        checkpoint.restore_optimizer(self.stepper.optimizer, self.model.named_parameters(), tensors)
        checkpoint.restore_generators({"gates": self.gates}, tensors)
        self.kept.load(tensors)
        self._continue(step, state)
        self.run_dir.rewind(step, state["metrics"])

    def _continue(self, step: int, state: dict[str, Any]) -> None:
        """Take the counters of a checkpoint."""
        self.schedule.load_state_dict(state["schedule"])
        self.task = self._build_task()
        self.task.load_state_dict(state["task"])
        self.skipping, self.capacity, self.clock = state["skipping"], state["capacity"], state["clock"]
        self.stages, self.last_ms = state["stages"], state["last_ms"]
        self.step_count = self.saved_at = step

    def _log(self, record: dict[str, Any]) -> None:
        if self.run_dir is not None:
            self.run_dir.log(record)
        if self.view is not None:
            self.view.update(record)

    def _event(self, event: str, detail: str) -> None:
        self._log({"kind": "event", "step": self.step_count, "event": event, "detail": detail})

    @contextmanager
    def _catch_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after the interval in progress; the second one interrupts at once."""

        def stop(signum: int, frame: object) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            before = signal.signal(signal.SIGINT, stop)
        except ValueError:
            # Not the main thread: whoever runs the threads handles signals.
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def train(
    config: RunConfig,
    *,
    root: str | Path = "runs",
    name: str | None = None,
    resume: bool = False,
    view: View | None = None,
    command: str | None = None,
    track: Sequence[str] = (),
) -> tuple[RunDir, dict[str, Any]]:
    """Train `config` in a run folder below `root` and return the folder and the summary.

    Args:
        name: of the folder; None makes one from the recipe's name and the seed.
        resume: go on with an interrupted run of that name (the config must be the same).
        track: trackers that get a copy of every metrics line, see `turnout.train.tracking`.
    Raises:
        ConfigError: impossible config, or the folder exists; DataError: files; Interrupted: Ctrl-C.
    """
    if isinstance(config.task, TextConfig):
        # A run folder must find its text from any working directory.
        config = replace(config, task=replace(config.task, path=str(Path(config.task.path).expanduser().resolve())))
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        from turnout.train.distributed import train_together

        return train_together(config, root=root, name=name, resume=resume, view=view, command=command)
    # What can refuse the config does so before a folder exists.
    trainer = Trainer(config, None, view)
    run = trainer.run_dir = RunDir.create(
        root,
        name,
        config_dict=to_dict(config),
        exist="resume" if resume else "error",
        manifest=build_manifest(config, config.seed, trainer.device, command),
        stem=f"{config.name}-{config.seed}",
    )
    finished = run.summary()
    if finished is not None:
        return run, finished
    if resume:
        trainer.load()
    with tracked(view, track, run, trainer.step_count) as trainer.view:
        return run, trainer.train()


def load_model(run: RunDir) -> tuple[CausalLM, RunConfig, Task]:
    """The trained model of a run folder, its config and its task at the last length; on the CPU, in evaluation mode."""
    config = from_dict(RunConfig, run.config)
    task_config = config.task
    lengths = getattr(config.schedule, "lengths", ())
    if lengths:
        task_config = task_config.with_length(lengths[-1])
    task = task_config.build(config.seed)
    model = CausalLM(config.model, vocab=task.vocab, seed=config.seed)
    weights, _ = checkpoint.load_tensors(run.model_path)
    checkpoint.check_tensors(model.state_dict(), weights)
    model.load_state_dict(weights)
    return model.eval(), config, task
