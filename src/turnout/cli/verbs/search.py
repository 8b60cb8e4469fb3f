"""`turnout search`: which head reads how far, found on a trained dense model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from turnout.cli.find import find_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.train.live import number

if TYPE_CHECKING:
    from turnout.search.run import Found
    from turnout.search.scorer import Scorer
    from turnout.train.config import RunConfig
    from turnout.train.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Search a pattern for each head of a run with layout A and pattern "full", and write a config that trains it.

    The loss is that of the run's frozen weights, the cost measured milliseconds of reading. A search that was killed
    goes on where it was. The folder gets evaluations.jsonl and a run, found-N after N evaluations: the same weights,
    heads that read alike side by side, which generate, eval and reach take like any other.

    Args:
        run: a finished run.
        method: grpo, reinforce, evolution, random, or relaxed (a gradient step counts as three evaluations).
        evaluations: forward passes to spend.
        price: nats that the cost of dense reading is worth.
        budget: largest cost of the winner, as a share of dense reading.
        actions: pattern specs joined by "/"; none = full, sinks + window at two sizes, dilated, decay, routed.
        cost_length: tokens at which reading is timed; none = the run's.
        cost_batch: sequences that are timed together.
        sequences: that the loss is measured on.
        seed: of the search.
        device: auto, cpu or cuda.
        runs: folder of all runs.
        out: folder; none = search-METHOD-SEED in the run's folder.
    """

    positional: ClassVar[tuple[str, ...]] = ("run",)
    run: str
    method: Literal["grpo", "reinforce", "evolution", "random", "relaxed"] = "grpo"
    evaluations: int = 256
    price: float = 0.1
    budget: float = 1.0
    actions: str | None = None
    cost_length: int | None = None
    cost_batch: int = 1
    sequences: int = 16
    seed: int = 0
    device: str = "auto"
    runs: str = "runs"
    out: str | None = None


def run(call: Call[Options]) -> Result:
    """Search, and print the winner beside the uniform patterns."""
    from turnout.models.config import split_layers
    from turnout.search.costs import measure_costs
    from turnout.search.run import search
    from turnout.search.scorer import Scorer
    from turnout.search.space import default_actions, space_of
    from turnout.train.loop import load_model, pick_device

    options = call.options
    folder = trained(find_run(options.run, options.runs))
    model, config, task = load_model(folder)
    actions = split_layers(options.actions) if options.actions else default_actions(task.length)
    space, device = space_of(model.config, actions), pick_device(options.device)
    timed = config.task.with_length(options.cost_length or task.length).build(config.seed)
    tokens = next(iter(timed.eval_batches(1, options.cost_batch))).tokens.to(device)
    scorer = Scorer(
        model.to(device), task, space, price=options.price, costs=measure_costs(model.config, actions, tokens),
        batch=options.sequences,
    )  # fmt: skip
    out = Path(options.out) if options.out else folder.path / f"search-{options.method}-{options.seed}"
    found = search(
        scorer, method=options.method, evaluations=options.evaluations, seed=options.seed, budget=options.budget,
        path=out / "evaluations.jsonl", report=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    uniform = {action: scorer(scorer.space.uniform(i)) for i, action in enumerate(actions)}
    served = _serve(scorer, found, config, out, call.command)
    rows = [(name, number(s.loss, ".4f"), f"{s.cost:.3f}", number(s.reward, ".4f")) for name, s in uniform.items()]
    rows.append((f"found by {options.method}", number(found.score.loss, ".4f"), f"{found.score.cost:.3f}",
                 number(found.score.reward, ".4f")))  # fmt: skip
    data = {
        "run": folder.name, "method": options.method, "evaluations": found.evaluations, "pattern": found.pattern,
        "loss": found.score.loss, "cost": found.score.cost, "reward": found.score.reward, "base": found.base,
        "uniform": {name: [s.loss, s.cost, s.reward] for name, s in uniform.items()}, "ms": scorer.costs,
        "found": str(served.path),
    }  # fmt: skip
    table = Table(("heads read by", "loss", "cost", "reward"), rows, f"{folder.name}, {task.length:,} tokens")
    trains = f'trains   turnout train {config.name} --model.pattern "{found.pattern}"'
    return Result(data, [table, f"serves   {served.path}", trains])


def _serve(scorer: Scorer, found: Found, config: RunConfig, out: Path, command: str) -> RunDir:
    """A run folder with the found pattern and the weights in its order."""
    from turnout.config import to_dict
    from turnout.search.heads import order_model
    from turnout.train import checkpoint
    from turnout.train.manifest import build_manifest
    from turnout.train.rundir import RunDir

    model, name = scorer.restore(), f"found-{found.evaluations}"
    order_model(model, scorer.space.orders(found.choice))
    wanted = replace(config, model=replace(config.model, pattern=found.pattern))
    run = RunDir.create(
        out, name, config_dict=to_dict(wanted), exist="resume" if (out / name).exists() else "error",
        manifest=build_manifest(wanted, config.seed, scorer.device, command),
    )  # fmt: skip
    checkpoint.save_tensors(run.model_path, {name: value.cpu() for name, value in model.state_dict().items()})
    return run
