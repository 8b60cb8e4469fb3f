"""`turnout eval`: score a trained run on fixed sequences, as it was trained or under changed conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from turnout.cli.find import find_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.numbers import layers
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError
from turnout.spec import Spec, format_spec, parse_spec
from turnout.train.live import number, percent

if TYPE_CHECKING:
    from turnout.models.causal_lm import CausalLM
    from turnout.tasks import Task


# Each costs a forward pass for every position scored.
HONEST_SEQUENCES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Evaluate the trained weights of a run, with deterministic decisions. Without options: the run's final evaluation.

    Args:
        run: name or path of a finished run; with --lambada and --lm-eval also a folder that turnout export wrote.
        length: tokens a sequence; without it the length trained last.
        sequences: how many; without it as many as the run's final evaluation.
        router: put this control in the place of the trained router: always, never, random:p=0.01, periodic:period=64,
            oracle, or shuffled (the trained decisions given to another sequence).
        honest: add the perplexity of each position with only its prefix given to the model, beside the usual one.
        lengths: score text in windows of these lengths too, separated by commas.
        routed: group the losses of single tokens by how many layers attended.
        lambada: score the last words of the passages in this file (.jsonl or text) instead.
        lm_eval: score these tasks of lm-eval (extra eval) instead, names or YAML files, separated by commas.
        device: auto, cpu or cuda.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("run",)
    run: str
    length: int | None = None
    sequences: int | None = None
    router: str | None = None
    honest: bool = False
    lengths: str | None = None
    routed: bool = False
    lambada: str | None = None
    lm_eval: str | None = None
    device: str = "auto"
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Evaluate and print accuracy, usage and slices."""
    from turnout.train.evaluate import evaluate
    from turnout.train.loop import load_model, pick_device

    options = call.options
    if options.lambada is not None or options.lm_eval is not None:
        from turnout.cli.eval_text import text_measures

        return text_measures(options)
    folder = trained(find_run(options.run, options.runs))
    if options.sequences is not None and options.sequences < 1:
        raise ConfigError(f"--sequences={options.sequences}; expected >= 1")
    device = pick_device(options.device)
    model, config, task = load_model(folder)
    if options.length is not None:
        task = task.config.with_length(options.length).build(config.seed)
    if options.router is not None:
        model = with_router(model, options.router, task, config.seed)
    sequences = options.sequences or config.loop.final_sequences
    batch = max(1, min(sequences, (2**18 if device.type == "cuda" else 2**15) // task.length))
    precision = config.optim.precision
    seen = evaluate(model.to(device), task, sequences=sequences, batch=batch, precision=precision, seed_offset=1)
    router = model.config.routing.router if "R" in model.config.layer_kinds else None
    data = {"run": folder.name, "length": task.length, "router": router, "chance": task.chance, **seen}
    rows = [
        ("accuracy", f"{number(seen['accuracy'], '.4f')} on {seen['n']:,} targets (chance {number(task.chance)})"),
        ("loss", number(seen["loss"])),
        ("usage", f"{percent(seen['usage'])} of slots, by layer {layers(seen['usage_layers'])}"),
        ("gates", f"{seen['gates_per_seq']:.2f} open per sequence"),
    ]
    title = f"{folder.name} at {task.length:,} tokens, router {router}"
    slices = [_slice_table(name, groups) for name, groups in seen["slices"].items() if len(groups) > 1]
    tables = [Table(("result", "value"), rows, title), *slices]
    if options.honest:
        from turnout.cli.study import honest

        shown = honest(model.eval(), task, min(sequences, HONEST_SEQUENCES))
        data["honest"] = shown.data
        tables += shown.tables
    if options.lengths is not None:
        from turnout.cli.eval_text import by_length

        data["lengths"], table = by_length(
            model, task, options.lengths, sequences=sequences, precision=precision, seed=config.seed
        )
        tables.append(table)
    if options.routed:
        from turnout.cli.eval_text import by_route

        data["by_route"], table = by_route(model, task, sequences=sequences)
        tables.append(table)
    return Result(data, tables)


def with_router(model: CausalLM, spec: str, task: Task, seed: int) -> CausalLM:
    """The same weights behind another router.

    Raises:
        ConfigError: the model has no router, or the new one has weights that were never trained.
    """
    from turnout.models.causal_lm import CausalLM

    config = model.config
    if "R" not in config.layer_kinds:
        raise ConfigError(f"--router {spec}: this run's layout {config.layer_kinds} has no router to replace")
    wanted = parse_spec(spec)
    if wanted.name == "shuffled" and "inner" not in wanted.options:
        wanted = Spec("shuffled", {**wanted.options, "inner": config.routing.router})
    routing = replace(config.routing, router=format_spec(wanted))
    other = CausalLM(replace(config, routing=routing), vocab=model.vocab, seed=seed)
    weights = model.state_dict()
    # A router that wraps the trained one keeps its weights one level deeper.
    weights |= {name.replace(".router.", ".router.inner."): w for name, w in weights.items() if ".router." in name}
    expected = other.state_dict()
    untrained = sorted(name for name, w in expected.items() if name not in weights or weights[name].shape != w.shape)
    if untrained:
        raise ConfigError(
            f"--router {spec} has weights that this run never trained ({untrained[0]}); choose a control without "
            "weights: always, never, random:p=0.01, periodic:period=64, oracle, shuffled"
        )
    other.load_state_dict({name: weights[name] for name in expected})
    if any(getattr(module, "needs_hint", False) for module in other.modules()) and not task.has_oracle:
        raise ConfigError(
            f"--router {spec} needs a task that knows where attention is needed; this run's has no oracle"
        )
    return other.eval()


def _slice_table(name: str, groups: list[dict[str, Any]]) -> Table:
    rows = [(str(g["value"]), f"{g['n']:,}", number(g["accuracy"], ".4f"), number(g["loss"])) for g in groups]
    return Table((name, "targets", "accuracy", "loss"), rows)
