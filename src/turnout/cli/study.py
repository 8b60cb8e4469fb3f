"""Tables of what `turnout probe --show` looks at in a trained run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from turnout.cli.result import Table
from turnout.errors import ConfigError


class Shown(NamedTuple):
    """One view: its data, its tables, and what a bar chart of it shows: (name, value) pairs and the axis."""

    data: Any
    tables: list[Table]
    bars: Sequence[tuple[str, float]]
    axis: str


def show(what: str, model: Any, task: Any, sequences: int) -> Shown:
    """Data and tables of one view of a model.

    Raises:
        ConfigError: an unknown view (names the nearest), or one of directions for a model without them.
    """
    return VIEWS[what](model, task, sequences)


def draw(path: Path, shown: Shown, title: str) -> Path:
    """Write a view's bar chart as SVG, and its numbers beside it as CSV."""
    from turnout.report.bars import Bar, bar_chart
    from turnout.report.figure import Data
    from turnout.train.atomic import write_file

    bars = [Bar(name, value, f"{value:.4g}") for name, value in shown.bars]
    write_file(path, bar_chart(bars, title=title, axis=shown.axis).encode())
    Data(name=path.stem, columns=("name", shown.axis), rows=[list(pair) for pair in shown.bars]).write(path.parent)
    return path


def honest(model: Any, task: Any, sequences: int) -> Shown:
    """Teacher-forced and prefix-honest perplexity, in all, by length of prefix and by domain."""
    from turnout.probe.honest import honest_perplexity

    found = honest_perplexity(model, task, sequences=sequences, batch=min(32, sequences))
    rows = [("all", *_pair(found), f"{found['n']:,}")]
    rows += [(f"prefix {r['from']}-{r['to']}", *_pair(r), "") for r in found["by_length"]]
    rows += [(r["domain"], *_pair(r), f"{r['n']:,}") for r in found["by_domain"]]
    gap, error = found["gap"], found["gap_stderr"]
    title = f"perplexity; prefix-honest loss is {gap:+.4f} ± {1.96 * error:.4f} nats above teacher-forced"
    places = [found, *found["by_length"], *found["by_domain"]]
    bars = [(row[0], place["honest"] - place["teacher_forced"]) for row, place in zip(rows, places, strict=True)]
    table = Table(("where", "teacher-forced", "prefix-honest", "difference", "targets"), rows, title)
    return Shown(found, [table], bars, "prefix-honest minus teacher-forced loss, nats a token")


def _pair(row: dict[str, Any]) -> tuple[str, str, str]:
    forced, right = row["teacher_forced"], row["honest"]
    return f"{math.exp(forced):.3f}", f"{math.exp(right):.3f}", f"{100 * math.expm1(right - forced):+.2f} %"


def lens(model: Any, task: Any, sequences: int) -> Shown:
    """Loss, accuracy and agreement with the final answer if the model ended at each layer."""
    from turnout.probe.lens import logit_lens

    taps, batches = _taps(model, task, sequences)
    found = logit_lens(taps, *batches[0])
    names = ["embedding", *(f"layer {i}" for i in range(len(found) - 1))]
    rows = [
        (name, f"{r['loss']:.3f}", f"{r['accuracy']:.3f}", f"{r['agreement']:.3f}")
        for name, r in zip(names, found, strict=True)
    ]
    bars = [(name, r["loss"]) for name, r in zip(names, found, strict=True)]
    return Shown(found, [Table(("after", "loss", "accuracy", "agreement"), rows, "logit lens")], bars, "loss, nats")


def attribution(model: Any, task: Any, sequences: int) -> Shown:
    """What the logit of the true next token at the last position is made of."""
    from turnout.probe.directional import attribution as measure

    taps, batches = _taps(model, task, sequences)
    found = measure(taps, batches, 3)
    rows = [(name, f"{value:+.3f}") for name, value in found["parts"].items()]
    rows += [(f"total with {key}", f"{found[key]['total']:+.3f}") for key in ("r = 0", "r = mean") if key in found]
    title = "direct logit attribution, logit minus mean logit"
    return Shown(found, [Table(("part", "contribution"), rows, title)], list(found["parts"].items()), "logit")


def copying(model: Any, task: Any, sequences: int) -> Shown:
    """Induction: accuracy on the second copy of random text, with heads and routing removed."""
    from turnout.probe.directional import StudySize
    from turnout.probe.directional import copying as measure

    taps, _ = _taps(model, task, sequences)
    found = measure(taps, task, StudySize(copies=sequences))
    skip = ("heads", "length", "chance")
    bars = [(n, sum(v) / len(v) if isinstance(v, list) else v) for n, v in found.items() if n not in skip]
    rows = [(name, f"{100 * value:.1f} %") for name, value in bars]
    title = f"induction, copies of {found['length']} tokens, chance {100 * found['chance']:.1f} %"
    return Shown(found, [Table(("model", "accuracy"), rows, title)], bars, "accuracy on the second copy")


def facts(model: Any, task: Any, sequences: int) -> Shown:
    """Probability and rank of the answers of a small fact set."""
    from turnout.probe.behaviour import facts as measure
    from turnout.probe.taps import Taps

    if not hasattr(task, "encode"):
        raise ConfigError(f"task {task.config.kind!r} has no text to encode; facts are for runs on text")
    found = measure(Taps(model, context=task.length), task.encode)
    rows = [(r["prompt"], r["answer"], f"{r['p']:.2e}", str(r["rank"])) for r in found]
    table = Table(("prompt", "answer", "P(answer)", "rank of its first token"), rows)
    return Shown(found, [table], [(r["prompt"] + r["answer"], r["p"]) for r in found], "P(answer)")


def choice(model: Any, task: Any, sequences: int) -> Shown:
    """Multiple choice from held-out text: accuracy with and without the future, and without the context."""
    from turnout.probe.choice import multiple_choice

    found = multiple_choice(model, task, questions=sequences)
    ways = ("teacher_forced", "honest", "no context")
    rows = [("chance", f"{100 * found['chance']:.1f} %", "")]
    for way in ways:
        low, high = found[way]["accuracy_95"]
        rows.append(
            (way.replace("_", "-"), f"{100 * found[way]['accuracy']:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}")
        )
    title = f"{found['n']} questions: which of four pieces of {found['ending']} tokens follows {found['context']}?"
    bars = [("chance", found["chance"]), *((way, found[way]["accuracy"]) for way in ways)]
    return Shown(found, [Table(("scored", "right", "95 %"), rows, title)], bars, "accuracy")


def domains(model: Any, task: Any, sequences: int) -> Shown:
    """Nearest-centroid accuracy of domains by feature."""
    from turnout.probe.directional import StudySize
    from turnout.probe.directional import domains as measure

    taps, _ = _taps(model, task, sequences)
    found = measure(taps, task, StudySize(texts=max(96, sequences)))
    if not found:
        raise ConfigError("this text has one domain only (a domain is a first folder below its path)")
    rows = [(name, f"{100 * value:.1f} %") for name, value in found["accuracy"].items()]
    table = Table(("feature", "accuracy"), rows, f"leave-one-out nearest centroid, texts {found['texts']}")
    return Shown(found, [table], list(found["accuracy"].items()), "accuracy")


def regimes(model: Any, task: Any, sequences: int) -> Shown:
    """By layer: mean and variance of r over texts, and heads whose r differs between domains."""
    from turnout.probe.directional import StudySize, layer_regimes
    from turnout.probe.geometry import directions_of

    taps, _ = _taps(model, task, sequences)
    directions_of(taps)
    found = layer_regimes(taps, task, StudySize(texts=max(96, sequences)))
    rows = [
        (str(r["layer"]), f"{r['mean']:.3f}", f"{r['variance']:.2e}", f"{r['specialists']} of {r['heads']}")
        for r in found
    ]
    bars = [(f"layer {r['layer']}", r["variance"]) for r in found]
    return Shown(found, [Table(("layer", "mean r", "variance of r", "specialist heads"), rows)], bars, "variance of r")


def vocabulary(model: Any, task: Any, sequences: int) -> Shown:
    """The tokens that each direction of the last layer writes most and least."""
    from turnout.probe.geometry import directions_of, vocabulary_projection

    taps, _ = _taps(model, task, sequences)
    layer = int(taps.find("hook_r")[-1].split(".")[1]) if taps.find("hook_r") else 0
    scores = vocabulary_projection(taps, layer, directions_of(taps)[-1]).cpu()
    found: list[dict[str, Any]] = []
    for head, of_head in enumerate(scores):
        for k, values in enumerate(of_head):
            order = values.argsort(descending=True).tolist()
            words = [[task.decode_token(i) for i in some] for some in (order[:8], order[::-1][:8])]
            top = float(values.max())
            found.append({"layer": layer, "head": head, "k": k, "most": words[0], "least": words[1], "top": top})
    rows = [(f"L{r['layer']}H{r['head']}K{r['k']}", " ".join(r["most"]), " ".join(r["least"])) for r in found]
    bars = [(row[0], r["top"]) for row, r in zip(rows, found, strict=True)]
    return Shown(found, [Table(("direction", "writes", "its opposite writes"), rows)], bars, "largest logit")


def geometry(model: Any, task: Any, sequences: int) -> Shown:
    """Cosines of learned directions beside those of random ones."""
    from turnout.probe.geometry import cosines, directions_of, random_cosines

    taps, _ = _taps(model, task, sequences)
    directions = directions_of(taps)
    learned, null = cosines(directions), random_cosines(tuple(directions.shape))
    rows = [(name, f"{v:.5f}", f"{null[name][0]:.5f} to {null[name][1]:.5f}") for name, v in learned.items()]
    table = Table(("cosine", "learned", "random"), rows)
    return Shown({"learned": learned, "random": null}, [table], list(learned.items()), "cosine")


def steering(model: Any, task: Any, sequences: int) -> Shown:
    """Probability of a class of tokens while the directions that write it are removed."""
    from turnout.probe.directional import steering as measure
    from turnout.probe.geometry import directions_of

    taps, batches = _taps(model, task, sequences)
    directions_of(taps)
    found = measure(taps, task, batches, 5)
    rows = [("intact", f"{found['plain']:.5f}"), ("its directions at r = 1", f"{found['steered']:.5f}")]
    rows += [("random directions at r = 1", f"{value:.5f}") for value in found["random"]]
    bars = [(name, float(value)) for name, value in rows]
    table = Table(("model", f"P({found['class']})"), rows, f"layer, head, direction: {found['picks']}")
    return Shown(found, [table], bars, f"P({found['class']})")


def transition(evaluations: Sequence[Sequence[dict[str, Any]]], names: Sequence[str]) -> Shown:
    """When the held-out accuracy of each run jumps, and the mean over the runs with its interval.

    Args:
        evaluations: "eval" lines of the metrics of each run.
    """
    from turnout.probe.transition import over_seeds

    curves = [[(line["step"], line["accuracy"]) for line in lines] for lines in evaluations]
    if any(value is None for curve in curves for _, value in curve):
        raise ConfigError("a transition is a jump of the accuracy, which a task of text does not have; use its loss")
    jump = over_seeds(curves)
    rows: list[tuple[str, ...]] = [
        (name, *("---" if found is None else (f"{getattr(found, key):.0f}" for key in ("start", "end", "width"))))
        for name, found in zip(names, jump.seeds, strict=True)
    ]
    spans = [
        f"{e.mean:.0f}" + (f" ({e.low:.0f} to {e.high:.0f})" if e.low == e.low else "") if e.n else "-"
        for e in (jump.start, jump.end, jump.width)
    ]
    rows.append((f"{jump.jumping} of {len(names)} jump", *spans))
    columns = ("run", "plateau until step", "risen at step", "rise (steps)")
    table = Table(columns, rows, "10 and 90 % of the rise of held-out accuracy; in brackets 95 % over runs")
    bars = [(name, found.start) for name, found in zip(names, jump.seeds, strict=True) if found is not None]
    return Shown(asdict(jump), [table], bars, "step at which the plateau ends")


def _taps(model: Any, task: Any, sequences: int) -> Any:
    from turnout.probe.directional import held_out
    from turnout.probe.taps import Taps

    return Taps(model, context=task.length), held_out(task, sequences, 32)


VIEWS: dict[str, Callable[[Any, Any, int], Shown]] = {
    view.__name__: view
    for view in (
        honest,
        lens,
        attribution,
        copying,
        facts,
        choice,
        domains,
        regimes,
        vocabulary,
        geometry,
        steering,
    )
}
