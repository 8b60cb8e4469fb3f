"""`turnout probe`: what the layers of a run hold that routing needs, beside an untrained twin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from turnout.cli.find import find_config, find_run, is_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """By layer: energy rank of score form and activations, probes for this token and the one before, cosine gap.

    Args:
        what: a finished run, or a recipe (its model with fresh weights; settings may be changed).
        show: layers, or another view of a run on text: honest (perplexity with the future taken away), lens,
            attribution, copying (induction), facts, domains; of directions: regimes, vocabulary, geometry, steering.
        figure: write a bar chart of that view to this SVG file, and its numbers beside it as CSV.
        sequences: held-out sequences that are read.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)
    overridable: ClassVar[bool] = True
    what: str
    show: Literal[
        "layers",
        "honest",
        "lens",
        "attribution",
        "copying",
        "facts",
        "domains",
        "regimes",
        "vocabulary",
        "geometry",
        "steering",
    ] = "layers"
    figure: str | None = None
    sequences: int = 64
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Probe the model and its untrained twin, and print one row a layer."""
    from turnout.models.causal_lm import CausalLM
    from turnout.probe.subspace import probe_layers

    options = call.options
    if options.sequences < 2:
        raise ConfigError(f"--sequences={options.sequences}; half train the probes and half score them, so >= 2")
    if is_run(options.what, options.runs):
        from turnout.train.loop import load_model

        call.refuse_overrides("a trained run is probed as it is")
        model, config, task = load_model(trained(find_run(options.what, options.runs)))
    else:
        config = find_config(options.what, call.overrides, options.runs)
        task = config.task.build(config.seed)
        model = CausalLM(config.model, vocab=config.task.vocab, seed=config.seed)
    if options.show != "layers":
        from turnout.cli.study import draw, show

        shown = show(options.show, model.eval(), task, options.sequences)
        parts: list[str | Table] = [*shown.tables]
        if options.figure is not None:
            parts.append(f"figure  {draw(Path(options.figure), shown, f'{options.what}: {options.show}')}")
        return Result({"what": options.what, "show": options.show, "found": shown.data}, parts)
    if options.figure is not None:
        raise ConfigError("--figure draws the views of --show other than layers; choose one of those")
    twin = CausalLM(config.model, vocab=model.vocab, seed=config.seed)
    found = probe_layers(model.cpu().eval(), task, sequences=options.sequences)
    null = probe_layers(twin.eval(), task, sequences=options.sequences)
    data = {"what": options.what, "layers": [*map(asdict, found)], "untrained": [*map(asdict, null)]}
    columns = ("layer", "form k90", "input k90", "this token", "token before", "cosine gap")
    rows = [_row(mine, other) for mine, other in zip(found, null, strict=True)]
    title = f"{options.what}: width {config.model.width}; in brackets the untrained twin"
    return Result(data, [Table(columns, rows, title=title)])


def _row(mine: Any, other: Any) -> tuple[str, ...]:
    def pair(name: str, form: str) -> str:
        values = [getattr(layer, name) for layer in (mine, other)]
        return "-" if values[0] is None else f"{values[0]:{form}} [{values[1]:{form}}]"

    return (
        str(mine.layer),
        pair("k90_form", "d"),
        pair("k90_input", "d"),
        pair("token", ".3f"),
        pair("previous", ".3f"),
        pair("cosine_gap", "+.3f"),
    )
