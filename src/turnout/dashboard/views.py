"""What every address shows: a template, its values, and the figures and tables that can be exported from it.

A view is a function of the site and the query. Pages and exports call the same view, so a figure in a file is the
figure of the page under the same address.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.claims.store import results_dir
from turnout.dashboard import budget, pareto
from turnout.dashboard.folder import NotThere, RunsFolder
from turnout.dashboard.listing import SORTS, STATES, Listing, RunLine, selected
from turnout.dashboard.loader import Loaded, Loader
from turnout.report import bench, bill_curves, controls, costs, details, gatemap, reading, savings, training
from turnout.report.figure import Cell, Data, Figure
from turnout.report.gates import GateSnapshot
from turnout.report.groups import Group, colour_variables, group_runs, provenance
from turnout.report.headline import chance_level, comparison_headline, headline, tiles
from turnout.report.numbers import count, percent, significant
from turnout.report.palette import layer_inks
from turnout.report.run import Run, number
from turnout.report.sequence import sequence_figure
from turnout.report.units import HEADS, energy_words, unit_rows, units_table

PER_PAGE = 200
MOST_COMPARED = 60
# Read as a file: importing the operator would import torch, which takes seconds.
_DISPATCH = Path(__file__).parents[1] / "ops" / "attend" / "breakeven.json"
Query = Mapping[str, str]


@dataclass(kw_only=True, slots=True)
class View:
    """One page.

    Attributes:
        template: its file.
        title: of the page.
        values: what the template prints.
        figures: in the page; each can be exported under its data's name.
        tables: further tables that can be exported.
        light, dark: colours of its groups.
        status: HTTP status.
    """

    template: str
    title: str
    values: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Data] = field(default_factory=list)
    light: dict[str, str] = field(default_factory=dict)
    dark: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Site:
    """What the dashboard shows.

    Args:
        runs: folder of the runs.
        results: folder of committed results (claims, bench); None = those that ship with the library.
    """

    def __init__(self, runs: Path, results: Path | None = None) -> None:
        self.folder = RunsFolder(runs)
        self.listing = Listing(self.folder)
        self.loader = Loader(self.folder)
        self.results = results or results_dir()

    def lines(self, query: Query) -> list[RunLine]:
        """The runs that a query selects."""
        return selected(self.listing.lines(), query)


def runs_view(site: Site, query: Query, picks: Sequence[str] = ()) -> View:
    """The table of runs."""
    every = site.listing.lines()
    found = selected(every, query)
    pages = max(1, math.ceil(len(found) / PER_PAGE))
    page = min(max(1, _whole(query.get("page", "")) or 1), pages)
    shown = found[(page - 1) * PER_PAGE : page * PER_PAGE]
    columns = ["run", "state", "task", "mechanism", "schedule", "seed", "step", "accuracy", "loss", "usage",
               "gates_per_seq", "lambda", "tokens_per_s", "device", "created"]  # fmt: skip
    rows: list[list[Cell]] = [
        [r.name, r.state, r.task, r.arm, r.schedule, r.seed, r.step, r.accuracy, r.loss, r.usage, r.gates, r.cost,
         r.tokens_per_s, r.device, r.created]
        for r in found
    ]  # fmt: skip
    values = {
        "every": len(every), "found": len(found), "shown": shown, "page": page, "pages": pages, "sorts": list(SORTS),
        "tasks": sorted({r.task for r in every}), "mechanisms": sorted({r.arm for r in every}), "states": STATES,
        "running": sum(r.state == "running" for r in every), "root": str(site.folder.root),
        "exists": site.folder.root.is_dir(), "foreign": site.folder.foreign() if not every else 0,
        "problems": [r for r in every if r.problem][:8], "colour": pareto.colour,
    }  # fmt: skip
    return View(
        template="runs.html.j2", title="Runs", values=values, tables=[Data(name="runs", columns=columns, rows=rows)]
    )


def run_view(site: Site, name: str, query: Query) -> View:
    """One run: headline, curves, budget, events."""
    loaded = site.loader.load(name)
    values, view = _run_frame(site, name, loaded, "overview")
    if loaded.newer:
        return view
    run = loaded.run
    group = group_runs([run])[0]
    found = [training.training_figure(run, group, chance_level(run)), budget.budget_figure(run)]
    view.figures = [figure for figure in found if figure]
    view.tables = [details.slice_data([run])]
    values |= {
        "headline": headline(run) if run.summary else so_far(run),
        "tiles": tiles(run) if run.evals or run.summary or run.train else [],
        "events": training.event_rows(run), "slices": details.slice_tables([run]), "loaded": loaded,
        "provenance": provenance([run]),
    }  # fmt: skip
    return view


def so_far(run: Run) -> str:
    """Where a run is that has no result yet: no judgement, only its last numbers."""
    if not run.train and not run.evals:
        return ""
    last, graded = (run.train or run.evals)[-1], run.last_eval
    parts = [f"Step {number(last, 'step'):,.0f}" + (f", {last['phase']}" if last.get("phase") else "")]
    if graded:
        name, write = ("loss", significant) if run.is_text else ("accuracy", percent)
        parts.append(
            f"{name} {write(number(graded, name))} at the last evaluation (step {number(graded, 'step'):,.0f})"
        )
    if not math.isnan(number(last, "usage")):
        parts.append(f"usage {percent(number(last, 'usage'))}")
    if number(last, "lambda") > 0:
        parts.append(f"λ {significant(number(last, 'lambda'))}")
    if not math.isnan(number(last, "tokens_per_s")):
        parts.append(f"{count(number(last, 'tokens_per_s'))} tokens/s")
    return f"{'; '.join(parts)}. The run has not finished."


def gates_view(site: Site, name: str, query: Query) -> View:
    """Gate maps of one run with a slider over the stored steps."""
    view, run, steps = _map_frame(site, name, query, "gates")
    snapshot = run.gates
    if snapshot:
        run.snapshots = [shot for at in _spread(steps, 8) if (shot := site.loader.gates(name, at)[0])]
        found = [gatemap.gate_figure(run, snapshot), gatemap.evolution_figure(run)]
        view.figures = [figure for figure in found if figure]
    view.values |= {
        "words": f"{reading.summary_words(snapshot)} {reading.query_words(snapshot)}" if snapshot else "",
        "tokens": reading.token_rows(snapshot) if snapshot else [],
        "phase": snapshot.phase if snapshot else "", "position": _position(steps, _step(query, steps)),
    }  # fmt: skip
    return view


def sequences_view(site: Site, name: str, query: Query) -> View:
    """Single sequences with their tokens coloured by the layers whose attention they took."""
    view, run, _ = _map_frame(site, name, query, "sequences")
    payload, left_out = reading.sequence_payload([(name, run)])
    stored = len(run.gates.sequences) if run.gates else 0
    number = min(_whole(query.get("sequence", "")) or 0, max(0, stored - 1))
    figure = sequence_figure(run, number)
    view.figures = [figure] if figure else []
    view.values |= {"payload": payload, "left_out": left_out, "stored": stored, "number": number}
    view.tables = [reading.sequence_data([(name, run)])]
    return view


def _map_frame(site: Site, name: str, query: Query, tab: str) -> tuple[View, Run, list[int]]:
    """What the pages of one gate map share: the run with that map in it, and the steps that have one."""
    loaded = site.loader.load(name)
    values, view = _run_frame(site, name, loaded, tab)
    run = loaded.run
    if loaded.newer:
        return view, run, []
    steps = site.folder.gate_steps(name)
    step = _step(query, steps)
    run.gates, why = site.loader.gates(name, step)
    values |= {
        "steps": steps, "step": run.gates.step if run.gates else None, "why": why, "latest": step is None,
        "nothing_routed": run.router == "none" or (not run.gates and not why),
    }  # fmt: skip
    _layer_colours(view, run.gates)
    return view, run, steps


def savings_view(site: Site, name: str, query: Query) -> View:
    """What a step costs: milliseconds, tokens a second, bytes, energy; measured beside counted."""
    loaded = site.loader.load(name)
    values, view = _run_frame(site, name, loaded, "savings")
    if loaded.newer:
        return view
    run = loaded.run
    rows = savings.timings(run)
    found = savings.compare(rows)
    if rows:
        view.figures = [costs.savings_figure(run, rows)]
        view.tables = [units_table(run)]
    values |= {
        "sentences": savings.sentences(found), "comparisons": found, "kinds": savings.KINDS,
        "verdict_css": savings.verdict_css, "units": unit_rows(run) if rows else [], "heads": HEADS,
        "energy": energy_words(run),
        "meta": {key: value for key, value in run.savings_meta.items() if not isinstance(value, dict | list)},
    }  # fmt: skip
    return view


def config_view(site: Site, name: str, query: Query) -> View:
    """Configuration and manifest."""
    loaded = site.loader.load(name)
    values, view = _run_frame(site, name, loaded, "config")
    rows: list[list[Cell]] = [[key, value] for key, value in details.config_rows(loaded.run)]
    view.tables = [Data(name="config", columns=["key", "value"], rows=rows)]
    values |= {"manifest": details.manifest_rows(loaded.run), "config": details.config_rows(loaded.run)}
    return view


def compare_view(site: Site, names: Sequence[str], query: Query) -> View:
    """Several runs: groups with intervals, quality against usage, curves, gate maps, settings that differ."""
    view = View(template="compare.html.j2", title="Compare runs")
    chosen = list(dict.fromkeys(names))
    gone: list[str] = []
    runs: list[Run] = []
    for name in chosen[:MOST_COMPARED]:
        try:
            loaded = site.loader.load(name)
        except NotThere as error:
            gone.append(str(error))
            continue
        if loaded.newer:
            gone.append(f"{name}: {loaded.newer}")
            continue
        loaded.run.gates = site.loader.gates(name, None)[0]
        runs.append(loaded.run)
    if len(chosen) > MOST_COMPARED:
        gone.append(f"The first {MOST_COMPARED} of {len(chosen)} runs are compared; more would not be told apart.")
    view.values = {"gone": gone, "runs": runs, "names": [run.path.name for run in runs]}
    if not runs:
        return view
    groups = group_runs(runs)
    view.light, view.dark = colour_variables(groups)
    _layer_colours(view, max((run.gates for run in runs if run.gates), key=lambda shot: shot.layers, default=None))
    view.figures = _comparison_figures(groups)
    view.tables = [controls.group_data(groups)]
    differences = details.config_differences(runs) if len(runs) > 1 else []
    view.values |= {
        "headline": comparison_headline(groups), "equal_usage": controls.equal_usage_words(groups),
        "group_rows": controls.group_rows(groups), "differences": differences,
        "many_tasks": len({group.task for group in groups}) > 1,
    }  # fmt: skip
    return view


def pareto_view(site: Site, query: Query) -> View:
    """Usage against loss or accuracy over the selected runs."""
    every = site.listing.lines()
    found = selected(every, query)
    with_loss = sum(not math.isnan(line.loss) for line in found)
    quality = "accuracy" if query.get("quality") == "accuracy" or not with_loss else "loss"
    tasks = sorted({line.task for line in found})
    drawn = [pareto.pareto_figure(task, [line for line in found if line.task == task], quality) for task in tasks]
    figures = [figure for figure in drawn if figure]
    best = {str(row[0]) for figure in figures for row in figure.data.rows if row[-1]}
    values = {
        "quality": quality, "found": found, "keys": pareto.legend(found), "tasks": sorted({r.task for r in every}),
        "mechanisms": sorted({r.arm for r in every}), "states": STATES,
        "front": sorted((line for line in found if line.name in best), key=lambda line: (line.task, line.usage)),
    }  # fmt: skip
    return View(template="pareto.html.j2", title="Usage against quality", values=values, figures=figures)


def _run_frame(site: Site, name: str, loaded: Loaded, tab: str) -> tuple[dict[str, Any], View]:
    """What all pages of one run share."""
    line = site.listing.line(name)
    values: dict[str, Any] = {
        "name": name, "run": loaded.run, "tab": tab, "newer": loaded.newer, "notes": loaded.run.notes,
        "state": line.state if line else "", "problem": line.problem if line else "",
    }  # fmt: skip
    view = View(template="newer.html.j2" if loaded.newer else f"run_{tab}.html.j2", title=name, values=values)
    view.light, view.dark = colour_variables(group_runs([loaded.run]))
    for i, ink in enumerate(layer_inks(max(1, len(loaded.run.routed_layers)))):
        view.light[f"--l{i}"], view.dark[f"--l{i}"] = ink.light, ink.dark
    return values, view


def _layer_colours(view: View, snapshot: GateSnapshot | None) -> None:
    for i, ink in enumerate(layer_inks(max(1, snapshot.layers if snapshot else 0))):
        view.light[f"--l{i}"], view.dark[f"--l{i}"] = ink.light, ink.dark


def _comparison_figures(groups: Sequence[Group]) -> list[Figure]:
    found: list[Figure | None] = []
    for task in dict.fromkeys(group.task for group in groups):
        mine = [group for group in groups if group.task == task]
        chance = chance_level(mine[0].runs[0])
        found += [controls.scatter_figure(task, mine, chance), training.comparison_figure(task, mine, chance)]
    mapped = [(group, next((run for run in group.runs if run.gates), None)) for group in groups]
    shown = [(group, run) for group, run in mapped if run is not None][:12]
    if shown:
        found.append(gatemap.comparison_figure(shown))
    return [figure for figure in found if figure]


def _step(query: Query, steps: Sequence[int]) -> int | None:
    """The stored step nearest to the one asked for; None = the last map."""
    wanted = _whole(query.get("step", ""))
    if wanted is None or not steps:
        return None
    return min(steps, key=lambda step: abs(step - wanted))


def _whole(raw: str) -> int | None:
    """A number of at most twelve digits, None for anything else."""
    return int(raw) if raw.isdecimal() and len(raw) <= 12 else None


def _position(steps: Sequence[int], step: int | None) -> int:
    return steps.index(step) if step in steps else max(0, len(steps) - 1)


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` steps, evenly from the first to the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


RUN_TABS: dict[str, Callable[[Site, str, Query], View]] = {
    "": run_view, "gates": gates_view, "sequences": sequences_view, "savings": savings_view, "config": config_view,
}  # fmt: skip


def kernels_view(site: Site, query: Query) -> View:
    """Break-even of the kernels and the measured rows."""
    notes: list[str] = []
    table: Any = {}
    try:
        table = json.loads(_DISPATCH.read_text())
    except (OSError, ValueError) as error:
        notes.append(f"the dispatch table cannot be read ({error})")
    rows, damaged = bench.read_rows(site.results / "bench")
    found: list[Figure | None] = [bench.dispatch_figure(table)]
    machines = sorted({str(row.get("device")) for row in bench.of_verb(rows, "breakeven")})
    found += [bench.speedup_figure(rows, step, machine=m) for m in machines for step in ("forward", "forward+backward")]
    kinds = {
        kind: bench.plain_table(bench.of_verb(rows, kind), f"bench_{kind}") for kind in ("kernel", "layer", "decode")
    }
    shown = {kind: data for kind, data in kinds.items() if data.rows}
    values = {"notes": [*notes, *damaged], "kinds": shown, "where": str(site.results / "bench")}
    return View(template="kernels.html.j2", title="Kernels", values=values, figures=[f for f in found if f],
                tables=list(shown.values()))  # fmt: skip


def inference_view(site: Site, query: Query) -> View:
    """The bill of inference, from whatever rows are committed."""
    rows, notes = bench.read_rows(site.results / "bench")
    mine = bench.of_verb(rows, "inference")
    table = bench.plain_table(mine, "inference")
    values = {"rows": mine, "table": table, "notes": notes, "where": str(site.results / "bench")}
    drawn = bill_curves.bill_figures(mine)
    tables = [table] if mine else []
    return View(template="inference.html.j2", title="Inference bill", values=values, figures=drawn, tables=tables)
