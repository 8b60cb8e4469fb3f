"""`turnout ablate`: what a trained model loses without one of its parts, with the control beside each loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from turnout.cli.find import find_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError

if TYPE_CHECKING:
    from turnout.probe.edits import Unit
    from turnout.probe.taps import Taps


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Perplexity on held-out text with parts of a run's model removed: at zero, at their mean, swapped, or at random.

    Args:
        run: name or path of a finished run on text.
        parts: what is removed: r, r:LAYER, head:LAYER.HEAD, attn:LAYER, mlp:LAYER, layer:LAYER. Without it: routing of
            directions as a whole and layer by layer where there is some, then every layer's attention and MLP.
        actions: zero, constant, mean, swap, random; without it all that a part has.
        value: what "constant" sets.
        sequences: held-out sequences that are read.
        figure: write a bar chart to this SVG file, and its numbers beside it as CSV.
        device: auto, cpu or cuda.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("run", "parts")
    run: str
    parts: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    value: float = 0.5
    sequences: int = 64
    figure: str | None = None
    device: str = "auto"
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Ablate and print one row a part and action."""
    from turnout.probe.edits import loss_under, parse_unit
    from turnout.probe.taps import Taps
    from turnout.train.loop import load_model, pick_device

    options = call.options
    if options.sequences < 2:
        raise ConfigError(f"--sequences={options.sequences}; expected >= 2: 'swap' needs a second one")
    units = [parse_unit(part) for part in options.parts]
    folder = trained(find_run(options.run, options.runs))
    model, _, task = load_model(folder)
    taps = Taps(model.to(pick_device(options.device)), context=task.length)
    size = max(2, min(options.sequences, 2**15 // task.length))
    batches = [(b.tokens, b.targets) for b in task.eval_batches(-(-options.sequences // size), size, 2)]
    if batches[0][0].shape != batches[0][1].shape:
        raise ConfigError(f"task {task.config.kind!r} has targets at some positions only; ablate reads text")
    plain, _ = loss_under(taps, batches)
    rows: list[dict[str, Any]] = [
        {"part": str(unit), "action": action, "loss": loss, "perplexity": math.exp(loss), "rise": loss - plain}
        for unit in units or _every_unit(taps)
        for action in options.actions or _actions(unit)
        for loss in [_ablated(taps, batches, unit, action, options.value)]
    ]
    data = {"run": folder.name, "loss": plain, "perplexity": math.exp(plain), "ablations": rows}
    title = f"{folder.name}: perplexity {math.exp(plain):.3f} intact, {len(batches) * size} sequences, teacher-forced"
    cells = [
        (str(r["part"]), str(r["action"]), f"{r['perplexity']:.3f}", f"{100 * math.expm1(r['rise']):+.2f} %")
        for r in rows
    ]
    parts: list[str | Table] = [Table(("part", "action", "perplexity", "change"), cells, title)]
    if options.figure is not None:
        parts.append(f"figure  {_draw(Path(options.figure), rows, title)}")
    return Result(data, parts)


def _every_unit(taps: Taps) -> list[Unit]:
    from turnout.probe.edits import Unit

    layers = range(len(taps.anatomy.blocks))
    routed = [int(name.split(".")[1]) for name in taps.find("hook_r")]
    units = [Unit("r"), *(Unit("r", i) for i in routed)] if routed else []
    return units + [Unit(kind, i) for i in layers for kind in ("attn", "mlp")]


def _actions(unit: Unit) -> tuple[str, ...]:
    return {"r": ("zero", "constant", "mean", "swap", "random"), "head": ("zero", "mean", "random")}.get(
        unit.kind, ("zero", "mean")
    )


def _ablated(taps: Taps, batches: list[Any], unit: Unit, action: str, value: float) -> float:
    from turnout.probe.edits import edits_of, loss_under, mean_values, names_of

    means = None
    if action == "mean":
        means = mean_values(taps, [tokens for tokens, _ in batches], names_of(taps, unit))
    return loss_under(taps, batches, edits_of(taps, unit, action, value=value, means=means))[0]


def _draw(path: Path, rows: list[dict[str, Any]], title: str) -> Path:
    from turnout.report.bars import Bar, bar_chart
    from turnout.report.figure import Data
    from turnout.train.atomic import write_file

    bars = [
        Bar(
            f"{r['part']} {r['action']}",
            r["rise"],
            f"{r['rise']:+.3f}",
            control=r["action"] not in ("zero", "constant"),
        )
        for r in rows
    ]
    write_file(path, bar_chart(bars, title=title, axis="rise of the loss, nats a token").encode())
    columns = ("part", "action", "loss", "perplexity", "rise")
    Data(name=path.stem, columns=columns, rows=[[r[c] for c in columns] for r in rows]).write(path.parent)
    return path
