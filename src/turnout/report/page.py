"""`write_report`: one self-contained HTML file for one run, or for several runs compared."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.errors import DataError
from turnout.report import controls, costs, details, gatemap, reading, savings, training, units
from turnout.report.figure import Data, Figure
from turnout.report.groups import Group, colour_variables, group_runs, provenance
from turnout.report.headline import chance_level, comparison_headline, headline, run_rows, tiles, title_of
from turnout.report.numbers import percent, ratio, significant
from turnout.report.palette import layer_inks
from turnout.report.plot import marker
from turnout.report.run import Run, load_run
from turnout.report.svg import tag
from turnout.report.template import TEMPLATES, engine, make_folder, script_json, style
from turnout.train.atomic import write_file

MAPS_SHOWN = 12
SAVINGS_SHOWN = 3
SLICE_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class GateBlock:
    """Everything the page says about the gates of one run."""

    words: str
    figure: Figure
    evolution: Figure | None
    tokens: list[reading.TokenRow]
    n_sequences: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SavingsBlock:
    """Everything the page says about the cost of one run."""

    name: str
    label: str
    sentences: list[tuple[str, str]]
    figure: Figure
    rows: list[savings.Comparison]
    units: list[units.UnitRow]
    energy: str


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several runs compared, and the CSV files of its figures beside it.

    Args:
        run_dirs: run folders; the same folder twice counts once.
        out: the HTML file; default `<run>/report.html`, for several runs `report.html` in their common parent folder.
            The figures' data goes to `<stem>_data/` beside it, so by default to `<run>/report_data/`.
    Returns:
        The path of the HTML file.
    Raises:
        DataError: no folder given, one of them is no run folder, or the page cannot be written.
        UnsupportedError: jinja2 is not installed.
    """
    folders = list({path.resolve(): Path(path) for path in map(Path, run_dirs)}.values())
    if not folders:
        raise DataError("no run folder given; expected at least one, such as runs/demo")
    runs = [load_run(path) for path in folders]
    target = Path(out) if out else _default_target(folders)
    folder = target.parent / f"{target.stem}_data"
    page, data = render(runs, data_folder=folder.name)
    make_folder(folder)
    for table in data:
        table.write(folder)
    write_file(target, page.encode("utf-8", "replace"))
    return target


def render(runs: Sequence[Run], *, data_folder: str = "report_data") -> tuple[str, list[Data]]:
    """The page as text and the tables behind its figures.

    Args:
        runs: loaded runs, at least one.
        data_folder: name of the folder beside the page that the CSV files go to.
    """
    groups = group_runs(runs)
    ordered = [run for group in groups for run in group.runs]
    light, dark = colour_variables(groups)
    for i, ink in enumerate(layer_inks(max([len(run.routed_layers) for run in ordered] + [1]))):
        light[f"--l{i}"], dark[f"--l{i}"] = ink.light, ink.dark
    script = (TEMPLATES / "gates.js").read_text(encoding="utf-8")
    context: dict[str, Any] = {
        "many": len(ordered) > 1,
        "title": title_of(ordered),
        "headline": headline(ordered[0]) if len(ordered) == 1 else comparison_headline(groups),
        "provenance": provenance(ordered),
        "tiles": tiles(ordered[0]) if len(ordered) == 1 else [],
        "notes": _notes(ordered),
        "run_rows": run_rows(groups),
        "style": style(),
        "script": script,
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "light": light,
        "dark": dark,
        "data_folder": data_folder,
        **_controls_context(groups),
        **_training_context(groups),
        **_gates_context(groups),
        **_savings_context(groups),
        **_details_context(ordered),
    }
    names = [("controls", "Controls")] if context["many"] else []
    names += [("training", "Training"), ("gates", "Gate map"), ("savings", "Savings"), ("slices", "Slices")]
    context["sections"] = [("runs", "Runs" if context["many"] else "Run"), *names, ("config", "Configuration")]
    data = [figure.data for figure in _figures(context)]
    data += [table for table in (context["group_data"], context["slice_data"], context["sequence_data"]) if table.rows]
    return _environment(groups).get_template("page.html.j2").render(context), data


def _environment(groups: Sequence[Group]) -> Any:
    """The template engine with what only this page needs."""
    environment = engine()
    from markupsafe import Markup

    swatches = {group.label: Markup(_swatch(group)) for group in groups}
    environment.globals.update(
        swatch=lambda label: swatches[label],
        percent=percent,
        ratio=ratio,
        significant=significant,
        quoted=lambda token: json.dumps(token, ensure_ascii=False),
        nan=math.nan,
        kinds=savings.KINDS,
        verdict_css=savings.verdict_css,
        heads=units.HEADS,
        slice_rows=SLICE_ROWS,
    )
    return environment


def _swatch(group: Group) -> str:
    mark = tag("path", d=marker(group.ink.marker, 8, 8, 5.5), style=f"fill:{group.var}")
    return tag("svg", mark, class_="swatch", viewBox="0 0 16 16", aria_hidden="true")


def _controls_context(groups: Sequence[Group]) -> dict[str, Any]:
    by_task = _by_task(groups)
    names = {"loss" if group.is_text else "accuracy" for group in groups}
    context: dict[str, Any] = {
        "scatters": [],
        "equal_usage": [],
        "group_rows": [],
        "group_data": controls.group_data(groups),
        "tasks": len(by_task),
        "quality_name": " or ".join(sorted(names)),
    }
    if sum(len(group.runs) for group in groups) == 1:
        return {**context, "group_data": Data(name="groups", columns=[], rows=[])}
    figures = [controls.scatter_figure(task, mine, chance_level(mine[0].runs[0])) for task, mine in by_task.items()]
    return {
        **context,
        "scatters": [figure for figure in figures if figure],
        "equal_usage": controls.equal_usage_words(groups),
        "group_rows": controls.group_rows(groups),
    }


def _training_context(groups: Sequence[Group]) -> dict[str, Any]:
    figures: list[Figure | None] = []
    events: list[tuple[str, str, str, str]] = []
    for task, mine in _by_task(groups).items():
        first = mine[0].runs[0]
        if len(groups) == 1 and len(mine[0].runs) == 1:
            figures.append(training.training_figure(first, mine[0], chance_level(first)))
            events = training.event_rows(first)
        else:
            figures.append(training.comparison_figure(task, mine, chance_level(first)))
    return {"training": [figure for figure in figures if figure], "events": events}


def _gates_context(groups: Sequence[Group]) -> dict[str, Any]:
    """The map of the only run, or small maps of one run per group; their sequences feed the reader."""
    found = [(group, run) for group in groups for run in group.runs if run.gates]
    firsts = [next((run for run in group.runs if run.gates), None) for group in groups]
    shown = [(group, run) for group, run in zip(groups, firsts, strict=True) if run][:MAPS_SHOWN]
    many = sum(len(group.runs) for group in groups) > 1
    labelled = [(f"{group.label}: {run.name}" if many else run.name, run) for group, run in shown]
    payload, left_out = reading.sequence_payload(labelled)
    notes = []
    if left_out:
        notes.append(f"{left_out} further stored sequences are left out to keep the page small.")
    if len(found) > len(shown):
        notes.append(f"{len(shown)} of {len(found)} runs with a gate map are shown; each run's own report has its map.")
    stored = sum(len(run.gates.sequences) for _, run in shown if run.gates)
    origin = provenance([run for _, run in shown], sample=f"n = {stored:,} stored sequences") if shown else ""
    return {
        "gates": _gate_block(shown[0][1]) if shown and not many else None,
        "nothing_routed": all(run.router == "none" for group in groups for run in group.runs),
        "gate_figures": [gatemap.comparison_figure(shown)] if shown and many else [],
        "payload": script_json(payload) if payload else "",
        "reader_caption": " ".join([*notes, f"{origin}."]) if shown else "",
        "sequence_data": reading.sequence_data(labelled),
    }


def _gate_block(run: Run) -> GateBlock | None:
    if run.gates is None:
        return None
    return GateBlock(
        words=f"{reading.summary_words(run.gates)} {reading.query_words(run.gates)}",
        figure=gatemap.gate_figure(run, run.gates),
        evolution=gatemap.evolution_figure(run),
        tokens=reading.token_rows(run.gates),
        n_sequences=len(run.gates.sequences),
    )


def _savings_context(groups: Sequence[Group]) -> dict[str, Any]:
    timed = [(group, run, rows) for group in groups for run in group.runs if (rows := savings.timings(run))]
    # Seeds of one mechanism cost the same.
    shown = list({group.label: (group, run, rows) for group, run, rows in reversed(timed)}.values())[::-1]
    blocks = []
    for i, (group, run, rows) in enumerate(shown[:SAVINGS_SHOWN]):
        found = savings.compare(rows)
        suffix = f"_{i + 1}" if len(shown) > 1 else ""
        blocks.append(
            SavingsBlock(
                name=run.name,
                label=group.label,
                sentences=savings.sentences(found),
                figure=costs.savings_figure(run, rows, name=f"savings{suffix}"),
                rows=found,
                units=units.unit_rows(run),
                energy=units.energy_words(run),
            )
        )
    note = (
        f"{len(timed)} runs have timings; {len(blocks)} are shown, one a mechanism." if len(timed) > len(blocks) else ""
    )
    return {"savings_blocks": blocks, "savings_note": note}


def _details_context(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "slices": details.slice_tables(runs),
        "slice_data": details.slice_data(runs),
        "differences": details.config_differences(runs) if len(runs) > 1 else [],
        "configs": [
            {"name": run.name, "manifest": details.manifest_rows(run), "config": details.config_rows(run)}
            for run in runs
        ],
    }


def _by_task(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return found


def _figures(context: dict[str, Any]) -> list[Figure]:
    figures: list[Figure] = [*context["scatters"], *context["training"], *context["gate_figures"]]
    block = context["gates"]
    if block:
        figures += [block.figure] + ([block.evolution] if block.evolution else [])
    return figures + [block.figure for block in context["savings_blocks"]]


def _notes(runs: Sequence[Run]) -> list[str]:
    return [f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes]


def _default_target(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / "report.html"
    return Path(os.path.commonpath([path.resolve().parent for path in folders])) / "report.html"
