"""The gallery: the figures of docs/gallery, drawn from committed results by one command, light and dark in one file.

`keep` takes the last gate maps of a run into results/gates, `draw` draws everything that the results allow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turnout.claims.registry import load_claims
from turnout.claims.routing_paradox import GROUP
from turnout.claims.store import read_json, results_dir, summaries
from turnout.errors import DataError
from turnout.report import bench, costs, directions, gatemap, savings
from turnout.report.figure import Cell, Data, Figure
from turnout.report.gates import parse_gates
from turnout.report.numbers import percent, significant
from turnout.report.palette import layer_inks
from turnout.report.plot import both_sizes, picture
from turnout.report.run import Run, load_run, number
from turnout.report.svg import linear_scale, tag, text
from turnout.report.theme import standalone
from turnout.train.atomic import write_file
from turnout.train.jsonfile import write_json

SEQUENCES = 2
DISPATCH = Path(__file__).parents[1] / "ops" / "attend" / "breakeven.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One figure of the gallery.

    Attributes:
        name: of its file.
        words: what to see in it.
        draw: folder of results -> the figure, None when its results are not there.
        title: over it; "" = the figure's own.
        table: folder of results -> lines of Markdown under it.
    """

    name: str
    words: str
    draw: Callable[[Path], Figure | None]
    title: str = ""
    table: Callable[[Path], list[str]] = lambda root: []


def keep(run: Path, name: str, root: Path | None = None, *, length: int | None = None) -> Path:
    """Copy the last gate map of a run (of one length, where lengths grew) into the committed results.

    Args:
        run: its folder.
        name: of the file in results/gates.
        root: folder of results; None = that of the checkout.
        length: tokens a sequence; None = the last map.
    Raises:
        DataError: no run, or no map of that length.
    """
    found = load_run(run)
    files = sorted((run / "gates").glob("step-*.json"), key=lambda path: int(path.stem.removeprefix("step-")))
    stored = (json.loads(path.read_bytes()) for path in (files if length else files[-1:]))
    maps = [raw for raw in stored if length in (None, raw["length"])]
    if not maps:
        raise DataError(f"{run} has no gate map{f' of length {length}' if length else ''}; train it first")
    gates = maps[-1]
    stages = {stage["length"]: stage for stage in found.summary.get("stages", [])}
    summary = {key: value for key, value in found.summary.items() if key not in ("stages", "usage_layers")}
    summary |= {key: value for key, value in stages.get(gates["length"], {}).items() if key != "step"}
    kept = {
        "name": found.name,
        "manifest": {key: value for key, value in found.manifest.items() if key not in ("host_cores", "format")},
        "summary": summary,
        "gates": gates | {"sequences": gates["sequences"][:SEQUENCES]},
    }
    target = (root or results_dir()) / "gates" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, kept, indent=None)
    return target


def draw(out: Path, root: Path | None = None) -> list[Path]:
    """Draw every piece whose results are there, with its data beside it and a page that shows them all.

    Args:
        out: folder, made when missing.
        root: folder of results; None = those that ship with the library.
    """
    root = root or results_dir()
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    lines = [
        "# Gallery",
        "",
        "Drawn by `turnout gallery` from committed results; the numbers are in the CSV files.",
        "",
    ]
    for piece in PIECES:
        figure = piece.draw(root)
        if figure is None:
            continue
        light, dark = _layer_variables()
        svg = standalone(figure.wide, theme="auto", light=light, dark=dark)
        for suffix, content in ((".svg", svg), (".csv", figure.data.csv())):
            write_file(out / f"{piece.name}{suffix}", content.encode())
            written.append(out / f"{piece.name}{suffix}")
        title = piece.title or figure.title
        lines += [f"## {title}", "", f"![{title}]({piece.name}.svg)", "", piece.words, ""]
        lines += [f"{figure.caption} [Data]({piece.name}.csv).", ""]
        table = piece.table(root)
        lines += [*table, ""] if table else []
    write_file(out / "README.md", "\n".join(lines).encode())
    return [*written, out / "README.md"]


def _layer_variables() -> tuple[dict[str, str], dict[str, str]]:
    inks = layer_inks(4)
    return {f"--l{i}": ink.light for i, ink in enumerate(inks)}, {f"--l{i}": ink.dark for i, ink in enumerate(inks)}


def _kept(root: Path, name: str) -> Run | None:
    """A kept map with what is known of its run."""
    raw = read_json(root / "gates" / f"{name}.json")
    snapshot = parse_gates(raw["gates"]) if raw else None
    if raw is None or snapshot is None:
        return None
    return Run(path=Path(raw["name"]), manifest=raw["manifest"], summary=raw["summary"], gates=snapshot)


def _gate_map(name: str) -> Callable[[Path], Figure | None]:
    def drawn(root: Path) -> Figure | None:
        run = _kept(root, name)
        if run is None or run.gates is None:
            return None
        figure = gatemap.gate_figure(run, run.gates)
        if "steps" in run.summary:
            return figure
        return replace(figure, caption=f"{figure.caption} Taken in phase {run.gates.phase}; the run did not end.")

    return drawn


def _layer_or_gate(root: Path) -> Figure | None:
    """What the published recipe and this library's curriculum leave open at distance 510, one above the other."""
    named = {"published recipe: a whole layer": "published-recipe-510", "this library: one gate": "published-size-510"}
    found = {words: run for words, name in named.items() if (run := _kept(root, name))}
    return gatemap.stacked_figure("A layer or a gate: recall at distance 510", found) if len(found) == 2 else None


def _savings(root: Path) -> Figure | None:
    """What one open gate costs, from the savings.json of a run on a GPU."""
    raw = read_json(root / "savings" / "one-gate-nvidia-h200.json")
    if not raw:
        return None
    rows, meta = raw["savings"]["rows"], {key: value for key, value in raw["savings"].items() if key != "rows"}
    run = Run(path=Path(raw["name"]), manifest=raw["manifest"], summary=raw["summary"], savings=rows, savings_meta=meta)
    return costs.savings_figure(run, savings.timings(run))


def _study(name: str) -> Callable[[Path], Figure | None]:
    def drawn(root: Path) -> Figure | None:
        from turnout.report import study

        claims = sorted(entry.id for entry in load_claims().values() if entry.group == GROUP)
        runs = study.largest({arm: found for claim in claims for arm, found in summaries(claim, root).items()})
        return getattr(study, name)(runs) if runs else None

    return drawn


def _language_models(root: Path) -> Figure | None:
    from turnout.report.language_models import pareto

    return pareto(root)


def _data_efficiency(root: Path) -> Figure | None:
    from turnout.report.data_efficiency import curves_figure

    return curves_figure(root)


def _language_model_table(root: Path) -> list[str]:
    from turnout.report.language_models import table

    return table(root)


def _break_even(root: Path) -> Figure | None:
    return bench.dispatch_figure(read_json(DISPATCH) or {})


def _open_layers(root: Path) -> Figure | None:
    """Usage of every layer of every seed of the published recipe at distance 510."""
    runs = summaries("RA2", root).get("published recipe", [])
    if not runs:
        return None
    return layers_figure(runs)


def layers_figure(runs: list[Mapping[str, Any]] | list[dict[str, Any]]) -> Figure:
    """A tile a layer and seed, coloured by usage, with its number in it."""

    def drawn(width: float) -> str:
        left, top, each, high = 130.0, 46.0, min(150.0, (width - 250) / 4), 44.0
        marks = [text("layer", left, top - 24, class_="axis-label")]
        layers = len(runs[0]["usage_layers"])
        for layer in range(layers):
            at = left + (layer + 0.5) * each
            marks.append(text(str(layer), at, top - 8, class_="tick", text_anchor="middle"))
        for i, run in enumerate(runs):
            y = top + i * high
            name = f"seed {run['seed']}"
            marks.append(text(name, left - 12, y + high / 2 + 4, class_="row-label", text_anchor="end"))
            for layer, usage in enumerate(run["usage_layers"]):
                step = gatemap.level(usage)
                x = left + layer * each
                css = f"q{step}" if step >= 0 else "rail"
                marks.append(tag("rect", class_=css, x=x + 2, y=y + 2, width=each - 4, height=high - 4))
                # White on the dark steps of a light page, dark on the light ones: the panel's colour is the contrast.
                ink = "fill:var(--panel)" if step >= 2 else "fill:var(--ink)"
                middle = {"class_": "row-label", "text_anchor": "middle", "style": ink}
                marks.append(text(percent(usage), x + each / 2, y + high / 2 + 4, **middle))
            words = f"{percent(run['usage'])} of all slots, {percent(run['accuracy'])} right"
            marks.append(text(words, left + layers * each + 10, y + high / 2 + 4, class_="row-label"))
        told = "; ".join(f"seed {r['seed']}: {', '.join(percent(u) for u in r['usage_layers'])}" for r in runs)
        return picture(width, top + len(runs) * high + 14, marks, label=f"Usage of each layer. {told}.")

    wide, narrow = both_sizes(drawn)
    rows = [[run["seed"], i, usage, run["accuracy"]] for run in runs for i, usage in enumerate(run["usage_layers"])]
    first = runs[0]
    return Figure(
        title="The 25 % is a layer",
        wide=wide,
        narrow=narrow,
        caption="Usage of the four layers after the published recipe at distance 510, five seeds. "
        f"n = {first['n_eval']:,} evaluated targets a seed · {first.get('device_name', first['device'])} · commit "
        f"{str(first.get('commit', 'unknown'))[:10]}.",
        data=Data(name="open_layers", columns=["seed", "layer", "usage", "accuracy"], rows=rows),
    )


def _leak(root: Path) -> Figure | None:
    """How much lower the loss of every arm of directional routing is when the whole window is seen at once."""
    arms = {
        name: [record for record in records if record.get("study", {}).get("honest")]
        for name, records in summaries("DR1", root).items()
    }
    rows: list[list[Cell]] = []
    for name, records in arms.items():
        if records:
            forced, honest = (
                math.fsum(record["study"]["honest"][key] for record in records) / len(records)
                for key in ("teacher_forced", "honest")
            )
            params = number(records[0], "params")
            rows.append([name, len(records), forced, honest, honest - forced, params])
    if not rows:
        return None
    # An arm's name ends with its size; the smallest model stands first, and in each the largest gap.
    sizes: dict[str, float] = {}
    for row in rows:
        size = _size(row)
        sizes[size] = max(sizes.get(size, 0.0), float(row[5] or 0))
    rows.sort(key=lambda row: (sizes[_size(row)], -float(row[4] or 0)))
    wide, narrow = both_sizes(lambda width: _draw_leak(rows, width))
    seeds = [int(row[1] or 0) for row in rows]
    return Figure(
        title="The leak of directional routing",
        wide=wide,
        narrow=narrow,
        caption="Prefix-honest minus teacher-forced loss. Teacher-forced: the whole window at once, where a router "
        "that pools over it sees the future. Prefix-honest: every prefix on its own, as in generation. Means over "
        f"{min(seeds)} to {max(seeds)} seeds.",
        data=Data(name="leak", columns=["arm", "seeds", "teacher_forced", "honest", "gap", "parameters"], rows=rows),
    )


def _size(row: list[Cell]) -> str:
    return str(row[0]).partition(", ")[2]


def _draw_leak(rows: list[list[Cell]], width: float) -> str:
    left, pitch, y = 96.0, 19.0, 40.0
    gaps = [float(row[4] or 0) for row in rows]
    x = linear_scale([0.0, max(0.01, *gaps)], left, width - 70, floor=0.0)
    marks = [text("what seeing the future is worth (nats per token)", 4, 16, class_="panel-title")]
    size = ""
    for row, gap in zip(rows, gaps, strict=True):
        if _size(row) != size:
            size = _size(row)
            marks.append(
                text(f"{significant(float(row[5] or 0) / 1e6, 2)}M parameters", left + 4, y + 12, class_="tick")
            )
            y += pitch
        ink = "var(--bad)" if gap > 1e-3 else "var(--accent)"
        arm = str(row[0]).partition(", ")[0]
        marks.append(text(arm, left - 10, y + 10, class_="row-label", text_anchor="end"))
        marks.append(
            tag(
                "rect",
                class_="bar",
                x=left,
                y=y,
                width=max(1.5, x(max(gap, 0)) - left),
                height=12.0,
                style=f"fill:{ink}",
            )
        )
        # Adding zero turns a rounded -0 into 0.
        marks.append(text(f"{round(gap, 4) + 0.0:+.4f}", max(left, x(gap)) + 8, y + 10, class_="tick"))
        y += pitch
    marks.append(tag("line", class_="axis", x1=left, x2=left, y1=34, y2=y))
    told = "; ".join(f"{row[0]}: {gap:.4f}" for row, gap in zip(rows, gaps, strict=True))
    return picture(width, y + 10, marks, label=f"Prefix-honest minus teacher-forced loss. {told}.")


PIECES = (
    Piece(name="layer-or-gate", draw=_layer_or_gate,
          words="Both answer every query. One keeps 511 gates of a layer open that nothing needs."),
    Piece(name="gate-map-126", draw=_gate_map("published-size-126"), title="One gate at distance 126",
          words="The published model under our curriculum: of 512 gates one stays open, at the query."),
    Piece(name="gate-map-510", draw=_gate_map("published-size-510"), title="One gate at distance 510",
          words="The same run after its length grew: one gate of 2,048."),
    Piece(name="gate-map-510-published", draw=_gate_map("published-recipe-510"), title="A layer at distance 510",
          words="The published recipe at the same distance: one layer stays open at every position, the others close."),
    Piece(name="open-layers", draw=_open_layers,
          words="What was published as 25 % usage is one of four layers left fully open, not a quarter of the tokens."),
    Piece(name="landscape", draw=_study("landscape"),
          words="What routes by content and what sits on its chance line, one row a mechanism."),
    Piece(name="transitions", draw=_study("transition_curves"),
          words="Routing is learned in a jump, with attention before the router and without."),
    Piece(name="leak", draw=_leak,
          words="Only the published router scores better when it may see what comes after."),
    Piece(name="leak-by-text", draw=directions.by_text,
          words="The shorter the text, the more the published router seems to gain, and the more it loses without it."),
    Piece(name="language-models", draw=_language_models, table=_language_model_table,
          words="Loss against usage at 124M weights: routed beside a static hybrid, chance, and attention everywhere."),
    Piece(name="data-efficiency", draw=_data_efficiency,
          words="What needs fewer tokens memorises in fewer: the dot is where each should have stopped."),
    Piece(name="savings", draw=_savings, title="What one open gate costs",
          words="Time, energy and counted operations of a small model with one open gate, beside dense attention."),
    Piece(name="break-even", draw=_break_even,
          words="Below its line the routed kernel is faster than the fastest dense attention."),
)  # fmt: skip
