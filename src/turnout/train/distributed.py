"""Training by several processes: replicas (DDP) or shards (FSDP2), the same batches and losses as one process.

    torchrun --nproc-per-node 2 -m turnout train RECIPE --loop.parallel fsdp

Each process takes its part of the batch that one process would take; metrics are those of all; the first one writes.
"""

from __future__ import annotations

import contextlib
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

from turnout.config import to_dict
from turnout.errors import ConfigError, TurnoutError
from turnout.routers.query import Route
from turnout.tasks import Batch, TextConfig
from turnout.train import checkpoint, sharded
from turnout.train.config import RunConfig
from turnout.train.loop import Trainer, View
from turnout.train.manifest import build_manifest
from turnout.train.rundir import RunDir
from turnout.train.world import World

# FSDP gathers the weights of a block when a gradient reaches what the block returned: it must find the gates in there.
with contextlib.suppress(ValueError):
    _pytree.register_dataclass(Route, field_names=[field.name for field in fields(Route)])


class DistributedTrainer(Trainer):
    """One process of several that train one `RunConfig`.

    Gate noise is drawn anew after each checkpoint, from seed, step and process, so that a resumed run repeats it.

    Args:
        world: of this process.
        run: in the main process only.
    """

    def __init__(self, config: RunConfig, world: World, run: RunDir | None = None, view: View | None = None) -> None:
        self.world, self.folder = world, None if run is None else run.checkpoint_dir
        optim = config.optim
        if optim.batch % world.size:
            raise ConfigError(f"optim.batch={optim.batch} does not divide among {world.size} processes; use a multiple")
        loop = replace(config.loop, cuda_graph=False, savings=False)
        self.sharded = config.loop.parallel == "fsdp"
        super().__init__(replace(config, loop=loop, device=world.device.type), run, view)
        if self.throughput.peak is not None:
            self.throughput.peak *= world.size
        if not self.sharded:
            # Blocks are compiled one by one; dynamo would cut each where a bucket of gradients is full, and fuse less.
            torch._dynamo.config.optimize_ddp = False
            routed = "R" in config.model.layer_kinds
            self.stepper.objective = DistributedDataParallel(self.stepper.objective, find_unused_parameters=routed)
        self._reseed()

    def _spread(self) -> None:
        if self.sharded:
            for block in self.model.blocks:
                fully_shard(block)
            fully_shard(self.model)
            register_fsdp_forward_method(self.model, "during")

    def _reseed(self) -> None:
        mixed = (self.config.seed * 7919 + 17) * 1_000_003 + self.step_count
        self.gates.manual_seed(mixed * 4099 + self.world.rank)

    def _draw(self, size: int) -> Batch:
        """This process's rows of the batch that one process would draw."""
        whole = self.task.train_batch(size)
        if size % self.world.size:
            raise ConfigError(
                f"{size} sequences do not divide among {self.world.size} processes; change optim.max_tokens"
            )
        each = size // self.world.size
        mine = slice(self.world.rank * each, (self.world.rank + 1) * each)
        parts = {name: getattr(whole, name)[mine] for name in ("tokens", "at", "targets", "hint")}
        return Batch(**parts, slices={}, starts=None if whole.starts is None else whole.starts[mine])

    def _one_step(self) -> None:
        super()._one_step()
        self.world.average(self.model.buffers())

    def _read(self) -> dict[str, Any]:
        return self.world.gather_read(self.stepper.read())

    def _asked_to_stop(self) -> bool:
        return bool(self.world.largest(float(self._stop)))

    def _evaluate(self, *, final: bool = False) -> list[str]:
        events = super()._evaluate(final=final)
        if self.sharded:
            # A forward pass without a backward one leaves the weights outside of the blocks gathered.
            typing.cast(FSDPModule, self.model).reshard()
        return events

    def _static_shapes(self) -> bool:
        # Processes that skip different weights would wait for each other's gradients.
        return True

    def _draws_gates(self) -> bool:
        return True

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: _whole(tensor) for name, tensor in self.model.state_dict().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        # A tied weight once: the format refuses two names of one memory.
        weights = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {
            **checkpoint.with_prefix("model", weights),
            **checkpoint.flatten_optimizer(self.stepper.optimizer, self.model.named_parameters()),
            **self.kept.tensors(),
        }

    def save(self) -> None:
        """Write a checkpoint; all processes call it."""
        if self.folder is None:
            return
        if self.run_dir is not None:
            self.run_dir.sync()
        sharded.save(self.folder, self.step_count, self._tensors(), self._state(), main=self.world.main)
        self.saved_at = self.step_count
        self._reseed()

    def load(self) -> None:
        """Continue from the folder's checkpoint, whatever number of processes wrote it."""
        if self.folder is None or not sharded.exists(self.folder):
            if self.run_dir is not None:
                self.run_dir.rewind(-1)
            return
        self._make_moments()
        weights = {n: t for n, t in self._tensors().items() if not n.startswith("kept.")}
        step, state = sharded.load(self.folder, weights)
        self._continue(step, state)
        if self.run_dir is not None:
            self.run_dir.rewind(step, state["metrics"])
        self._reseed()

    def _make_moments(self) -> None:
        """Optimiser state of the right shapes, to be filled: one step of size zero without gradients."""
        optimizer, before = self.stepper.optimizer, {n: p.detach().clone() for n, p in self.model.named_parameters()}
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(before[name])

    def train(self, *, stop_after: int | None = None) -> dict[str, Any]:
        """As for one process; a lost connection says what is kept."""
        try:
            return super().train(stop_after=stop_after)
        except (dist.DistError, RuntimeError) as error:
            if isinstance(error, TurnoutError) or not _lost(error):
                raise
            kept = (
                f"the checkpoint of step {self.saved_at} in {self.folder} is kept" if self.saved_at else "none is kept"
            )
            raise TurnoutError(
                f"process {self.world.rank} of {self.world.size} lost another one after step {self.step_count} "
                f"({str(error).splitlines()[0][:120]}); {kept}; go on with torchrun ... --resume, on any number of "
                "processes"
            ) from error


def train_together(
    config: RunConfig, *, root: str | Path, name: str | None, resume: bool, view: View | None, command: str | None
) -> tuple[RunDir, dict[str, Any]]:
    """`turnout.train.loop.train` in each process of a group."""
    if isinstance(config.task, TextConfig):
        config = replace(config, task=replace(config.task, path=str(Path(config.task.path).expanduser().resolve())))
    world = World(config.device)
    try:
        if world.main:
            # Tokenised once; the others find it done.
            config.task.build(config.seed)
        world.wait()
        trainer = DistributedTrainer(config, world, None, view if world.main else None)
        trouble, path = "", ""
        if world.main:
            try:
                manifest = build_manifest(config, config.seed, trainer.device, command) | {"processes": world.size}
                run = RunDir.create(
                    root, name, config_dict=to_dict(config), exist="resume" if resume else "error",
                    manifest=manifest, stem=f"{config.name}-{config.seed}",
                )  # fmt: skip
                trainer.run_dir, path = run, str(run.path)
            except TurnoutError as error:
                trouble = str(error)
        trouble, path = world.say((trouble, path))
        if trouble:
            raise ConfigError(trouble)
        run = RunDir.open(path)
        trainer.folder = run.checkpoint_dir
        finished = run.summary()
        if finished is not None:
            return run, finished
        if resume:
            trainer.load()
        summary = trainer.train()
        world.wait()
        return run, summary
    finally:
        world.leave()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _lost(error: BaseException) -> bool:
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "timed out", "process group")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
