"""`turnout reach`: how far a trained model looks, and what a pattern would not let it see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from turnout.cli.find import find_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Attention distances by domain and head; with --pattern what it cuts off, and how far a stack of it can see.

    The folder gets distance.svg, reach.svg and distance.csv; reach.svg alone where weights hang on more than the place
    of a pair (contextual positions, chosen blocks).

    Args:
        run: a finished run.
        pattern: a spec, or one a layer joined by "/"; none = the run's own.
        sequences: held-out sequences that are read.
        length: tokens of a sequence; none = the run's.
        runs: folder of all runs.
        out: folder; none = reach in the run's folder.
    """

    positional: ClassVar[tuple[str, ...]] = ("run",)
    run: str
    pattern: str | None = None
    sequences: int = 16
    length: int | None = None
    runs: str = "runs"
    out: str | None = None


def run(call: Call[Options]) -> Result:
    """Measure, print two tables, write the figures."""
    from turnout.probe.distance import attention_distances, reachable
    from turnout.report.distance import distance_data, distance_figure, reach_figure
    from turnout.report.theme import standalone
    from turnout.train.atomic import write_file
    from turnout.train.loop import load_model

    options = call.options
    if options.sequences < 1:
        raise ConfigError(f"--sequences={options.sequences}; expected >= 1")
    folder = trained(find_run(options.run, options.runs))
    model, config, task = load_model(folder)
    if options.length is not None:
        task = task.config.with_length(options.length).build(config.seed)
    spec = options.pattern or config.model.pattern
    found, why = None, ""
    try:
        found = attention_distances(model, task, patterns=[spec], sequences=options.sequences)
    except UnsupportedError as error:
        why = f"not measured: {error}"
    reach = reachable(replace(config.model, pattern=spec), task.length)
    out = Path(options.out) if options.out else folder.path / "reach"
    out.mkdir(parents=True, exist_ok=True)
    lost = {} if found is None else found.lost
    write_file(out / "reach.svg", standalone(reach_figure(reach, lost), theme="light").encode())
    title = f"{folder.name}, {task.length:,} tokens"
    data = {"run": folder.name, "pattern": spec, "length": task.length, "reachable": reach}
    told = [(str(row["layer"]), f"{row['farthest']:,}", f"{100 * row['share']:.1f} %") for row in reach]
    seen = ("layer", "farthest", "of all positions")
    if found is None:
        return Result(data | {"unmeasured": why}, [Table(seen, told, title), why, f"figures {out}"])
    write_file(out / "distance.svg", standalone(distance_figure(found), theme="light").encode())
    distance_data(found).write(out)
    spans = {name: found.mean_span(name) for name in found.mass}
    domains = [
        (name, f"{spans[name]:,.0f}", ", ".join(f"{100 * share:.1f}" for share in lost[spec][name]))
        for name in found.mass
    ]
    # A layer without attention has no heads.
    heads = iter(found.spans)
    layers = [
        (*row, ", ".join(f"{span:,}" for span in next(heads)) if kind != "L" else "")
        for row, kind in zip(told, config.model.layer_kinds, strict=True)
    ]
    columns = ("domain", "90 % span, tokens", f"mass lost to {spec}, % by layer")
    return Result(
        data | {"span": spans, "lost": lost[spec], "spans": found.spans},
        [Table(columns, domains, title), Table((*seen, "90 % span of each head"), layers), f"figures {out}"],
    )
