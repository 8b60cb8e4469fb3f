"""`turnout train`: a recipe with changed settings, from the start or from where it was interrupted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from turnout.cli.find import find_run, is_run, last_unfinished, resume_hint, run_config
from turnout.cli.flags import Call, Flags
from turnout.cli.numbers import summary_rows
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError
from turnout.recipes import get_recipe
from turnout.train.config import RunConfig
from turnout.train.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Train a recipe in a run folder. Ctrl-C or a kill at any moment loses nothing: --resume goes on.

    Several processes or GPUs: torchrun --nproc-per-node 2 -m turnout train RECIPE, as copies (--loop.parallel ddp) or
    parts (fsdp) of the model; checkpoints go on with any number of them.

    Args:
        recipe: its name (turnout list recipes); with --resume also a run.
        name: of the run folder; without it the recipe's name, the seed and a number.
        runs: folder of all runs.
        resume: go on with the run --name, or with the last unfinished one (of the recipe with these settings).
        track: also log to these, comma-separated: tensorboard, trackio, wandb (offline).
        dry_run: print size, operations, steps and memory; write nothing.
    """

    positional: ClassVar[tuple[str, ...]] = ("recipe",)
    overridable: ClassVar[bool] = True
    recipe: str | None = None
    name: str | None = None
    runs: str = "runs"
    resume: bool = False
    track: str = ""
    dry_run: bool = False


def run(call: Call[Options]) -> Result:
    """Train, and print the result."""
    options = call.options
    config, root, name = _resumed(call) if options.resume else (_started(call), options.runs, options.name)
    if options.dry_run:
        from turnout.cli.plan import plan

        return plan(config)
    from turnout.train.tracking import parse_trackers

    names = parse_trackers(options.track)
    folder, summary = train_run(config, root, name, call, resume=options.resume, track=names)
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        # One of several processes: the first one speaks.
        return Result({"process": int(rank), "path": folder.path}, [])
    done = Table(("result", "value"), summary_rows(summary))
    return Result(summary, [done, f"run     {folder.path}", f"report  turnout report {folder.path}"])


def train_run(
    config: RunConfig,
    root: str,
    name: str | None,
    call: Call[Any],
    *,
    resume: bool = False,
    track: Sequence[str] = (),
) -> tuple[RunDir, dict[str, Any]]:
    """Train under a live view; Ctrl-C becomes a KeyboardInterrupt that says how to go on."""
    from turnout.train.live import LiveView
    from turnout.train.loop import Interrupted, train
    from turnout.train.schedules import build_schedule

    with LiveView(build_schedule(config.schedule).total_steps, enabled=False if call.options.json else None) as view:
        try:
            return train(config, root=root, name=name, resume=resume, view=view, command=call.command, track=track)
        except Interrupted as stop:
            hint = f"; {resume_hint(stop.run)}" if stop.run else ""
            raise KeyboardInterrupt(f"stopped after step {stop.step}, all of it saved{hint}") from stop


def _started(call: Call[Options]) -> RunConfig:
    if call.options.recipe is None:
        raise ConfigError("turnout train needs RECIPE; turnout list recipes names them, see turnout train --help")
    return get_recipe(call.options.recipe).config(call.overrides)


def _resumed(call: Call[Options]) -> tuple[RunConfig, str, str]:
    """Config, root and name of the run to go on with."""
    options = call.options
    if options.recipe is not None and is_run(options.recipe, options.runs):
        folder = find_run(options.recipe, options.runs)
        return run_config(folder, call.overrides), str(folder.path.parent), folder.name
    config = None if options.recipe is None else get_recipe(options.recipe).config(call.overrides)
    if config is not None and options.name is not None:
        return config, options.runs, options.name
    folder = find_run(options.name, options.runs) if options.name else last_unfinished(options.runs, config)
    return config or run_config(folder, call.overrides), str(folder.path.parent), folder.name
