"""`turnout probe`: what the layers of a model hold that routing needs, beside an untrained twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from turnout.cli.find import find_config, find_run, is_run, seeds_of, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """By layer: energy rank of score form and activations, probes for this token and the one before, cosine gap.

    Args:
        what: a finished run, a recipe (its model with fresh weights; settings may be changed), or a local folder of any
            Hugging Face causal language model (read on random ids with evidence to find, 64 a sequence).
        show: layers, or another view of a run: transition (when its accuracy jumps, over all seeds beside it); on text:
            honest (perplexity with the future taken away), lens, attribution, copying (induction), facts, choice (of
            four endings), domains; of directions: regimes, vocabulary, geometry, steering.
        figure: write a bar chart of that view to this SVG file, and its numbers beside it as CSV.
        sequences: held-out sequences that are read.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)
    overridable: ClassVar[bool] = True
    what: str
    show: Literal[
        "layers",
        "transition",
        "honest",
        "lens",
        "attribution",
        "copying",
        "facts",
        "choice",
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
    options = call.options
    if options.sequences < 2:
        raise ConfigError(f"--sequences={options.sequences}; half train the probes and half score them, so >= 2")
    if options.show == "transition":
        from turnout.cli.study import transition

        call.refuse_overrides("a transition is read off the metrics of trained runs")
        runs = seeds_of(find_run(options.what, options.runs))
        return _view(options, transition([run.metrics("eval") for run in runs], [run.name for run in runs]))
    model, twin, task = _subject(call)
    if options.show != "layers":
        from turnout.cli.study import show

        return _view(options, show(options.show, model.eval(), task, options.sequences))
    if options.figure is not None:
        raise ConfigError("--figure draws the views of --show other than layers; choose one of those")
    return _layers(options, model, twin(), task)


def _subject(call: Call[Options]) -> tuple[Any, Callable[[], Any], Any]:
    """The model, what makes its untrained twin, and a task for both."""
    from turnout.models.causal_lm import CausalLM

    options = call.options
    if is_run(options.what, options.runs):
        from turnout.train.pretrained import is_pretrained

        call.refuse_overrides("a trained model is probed as it is")
        if is_pretrained(options.what):
            return _foreign(options.what)
        from turnout.train.loop import load_model

        model, config, task = load_model(trained(find_run(options.what, options.runs)))
    else:
        config = find_config(options.what, call.overrides, options.runs)
        task = config.task.build(config.seed)
        model = CausalLM(config.model, vocab=config.task.vocab, seed=config.seed)
    return model, lambda: CausalLM(config.model, vocab=model.vocab, seed=config.seed), task


def _foreign(folder: str) -> tuple[Any, Callable[[], Any], Any]:
    """A Hugging Face model reads ids that mean nothing to it, as the study's frozen models did."""
    # Also enters this library's own exported models under the Auto classes.
    from turnout.models.hf.foreign import load_foreign
    from turnout.tasks import RetrievalConfig

    model: Any = load_foreign(folder)
    vocab = min(256, model.config.vocab_size)
    # A causal model finds what lies before the query.
    task = RetrievalConfig(length=64, vocab=vocab, min_distance=25, direction="before").build(0)
    return model, lambda: load_foreign(folder, twin=True), task


def _view(options: Options, shown: Any) -> Result:
    """A view's tables, and its figure where one is asked for."""
    from turnout.cli.study import draw

    parts: list[str | Table] = [*shown.tables]
    if options.figure is not None:
        parts.append(f"figure  {draw(Path(options.figure), shown, f'{options.what}: {options.show}')}")
    return Result({"what": options.what, "show": options.show, "found": shown.data}, parts)


def _layers(options: Options, model: Any, twin: Any, task: Any) -> Result:
    from turnout.probe.subspace import probe_layers

    found = probe_layers(model.cpu().eval(), task, sequences=options.sequences)
    null = probe_layers(twin.eval(), task, sequences=options.sequences)
    data = {"what": options.what, "layers": [*map(asdict, found)], "untrained": [*map(asdict, null)]}
    columns = ("layer", "form k90", "input k90", "this token", "token before", "cosine gap", "finds", "at random")
    rows = [_row(mine, other) for mine, other in zip(found, null, strict=True)]
    return Result(data, [Table(columns, rows, title=f"{options.what}; in brackets the untrained twin")])


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
        pair("finds", ".3f"),
        pair("finds_random", ".3f"),
    )
