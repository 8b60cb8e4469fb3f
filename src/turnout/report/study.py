"""The page of a study: the routing paradox from its committed runs, four figures and the table of rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from turnout.claims.registry import load_claims
from turnout.claims.routing_mechanics import READ
from turnout.claims.routing_paradox import GROUP, best_lr, chance_of, precision
from turnout.claims.store import claim_rows, results_dir, summaries
from turnout.errors import DataError
from turnout.recipes.routing_paradox import SCALES
from turnout.report.figure import Data, Figure
from turnout.report.palette import Ink, ink
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.svg import linear_scale, log_scale, tag, text
from turnout.report.template import write_page

Runs = dict[str, list[dict[str, Any]]]
# Not learned: they show what is possible, and would be every front by themselves.
INDICES = ("identity match", "bloom")


def write_study(out: Path, root: Path | None = None) -> Path:
    """Write the page `out` and the CSV files of its figures beside it.

    Args:
        out: the HTML file.
        root: folder of results; None = those of the checkout or of the installed package.
    Raises:
        DataError: nothing of the study is measured there.
        UnsupportedError: jinja2 is not installed.
    """
    root = root or results_dir()
    claims = sorted(entry.id for entry in load_claims().values() if entry.group == GROUP)
    runs = largest({name: records for claim_id in claims for name, records in summaries(claim_id, root).items()})
    if not runs:
        raise DataError(f"{root} holds no run of the study; measure it with: turnout reproduce {GROUP}")
    figures = [landscape(runs), transition_curves(runs), spectra(runs), pareto(runs, summaries("RPC", root))]
    shown = [figure for figure in figures if figure is not None]
    return write_page(
        out, "study.html.j2", shown, provenance=_provenance(runs),
        rows=[row for claim_id in claims for row in claim_rows(claim_id, root)],
    )  # fmt: skip


def largest(runs: Runs) -> Runs:
    """Every arm at the largest scale measured, under its name without the scale; only arms that route."""
    found: Runs = {}
    for scale in SCALES:
        for name, records in runs.items():
            if not name.endswith(f", {scale}") or "runs" not in records[0]:
                continue
            if records[0]["config"]["model"]["selector"] != "none":
                found[name.rpartition(", ")[0]] = records
    return found


def _provenance(runs: Runs) -> str:
    records = [record for arm in runs.values() for record in arm]
    devices = ", ".join(sorted({str(r.get("device_name", r["device"])) for r in records}))
    commits = ", ".join(sorted({str(r.get("commit", "unknown"))[:12] for r in records}))
    seeds = sorted({len(arm) for arm in runs.values()})
    counted = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return f"{len(runs)} arms, {counted}, {devices}, commit {commits}"


def _ink(name: str) -> Ink:
    """Colour by what the router saw; the label decides the marker."""
    family = {"raw": "linear", "shift": "oracle", "attention": "dense", "sparse": "static_hybrid", "ssm": "ema"}
    first = name.split(",")[0].split()[0]
    return ink(family.get(first, first))


def _colour(name: str) -> str:
    found = _ink(name)
    return f"light-dark({found.light},{found.dark})"


def landscape(runs: Runs) -> Figure:
    """Precision of every arm at its best learning rate, its interval and its own chance."""
    arms = sorted(runs, key=lambda name: (-precision(runs[name]).mean, name))
    usual = max(records[0]["config"]["task"]["length"] for records in runs.values())
    rows: list[list[Any]] = []
    for name in arms:
        found = precision(runs[name])
        config = runs[name][0]["config"]
        rows.append(
            [name, config["task"]["length"], found.mean, found.low, found.high, chance_of(runs[name][0]), found.n]
        )

    def draw(width: float) -> str:
        wide = width > 600
        left, pitch = (330.0, 17.0) if wide else (170.0, 17.0)
        box = Box(left=left, top=24, width=width - left - 26, height=pitch * len(arms))
        x = linear_scale([0.0, 1.0], box.left, box.right, floor=0.0)
        marks = [text("routing precision at the best learning rate", 4, 14, class_="panel-title")]
        for value in (0.0, 0.25, 0.5, 0.75, 1.0):
            marks.append(tag("line", class_="grid", x1=x(value), x2=x(value), y1=box.top, y2=box.bottom))
            marks.append(text(f"{100 * value:.0f} %", x(value), box.bottom + 15, class_="tick", text_anchor="middle"))
        panel = Panel(
            box=box, x=x, y=linear_scale([0.0, float(len(arms))], box.top, box.bottom, floor=0.0), marks=marks
        )
        for i, (arm, length, mean, low, high, chance, n) in enumerate(rows):
            y = box.top + (i + 0.5) * pitch
            name = arm if length == usual else f"{arm}, T={length}"
            short = name if wide or len(name) < 27 else name[:25] + "…"
            marks.append(text(short, box.left - 8, y + 4, class_="row-label", text_anchor="end", title=name))
            marks.append(tag("line", class_="reference", x1=x(chance), x2=x(chance), y1=y - 7, y2=y + 7))
            if not math.isnan(low):
                d = f"M{x(low):.1f} {y:.1f}L{x(high):.1f} {y:.1f}"
                marks.append(tag("path", class_="whisker", d=d, style=f"stroke:{_colour(arm)}"))
            words = f"{name}: {100 * mean:.1f} %, chance {100 * chance:.1f} %, {n} seeds"
            style = f"fill:{_colour(arm)}"
            marks.append(tag("circle", tag("title", words), class_="dot", cx=x(mean), cy=y, r=3.6, style=style))
        return picture(width, box.bottom + 24, panel.marks, label="Routing precision by mechanism with chance marks")

    wide, narrow = both_sizes(draw)
    return Figure(
        title="The landscape: what routes, and what sits on its chance line",
        wide=wide, narrow=narrow,
        caption="Dot: mean over seeds at the best learning rate; line: 95 % interval; dashed tick: exact chance "
        f"of that arm. {_provenance(runs)}.",
        data=Data(
            name="landscape", columns=["arm", "length", "precision", "low", "high", "chance", "seeds"], rows=rows
        ),
    )  # fmt: skip


def transition_curves(runs: Runs) -> Figure | None:
    """Held-out P@k over steps of the arms that the transition claim reads."""
    names = [name for _, name in READ if name in runs and runs[name][0]["runs"][0]["curve"]]
    if not names:
        return None
    rows: list[list[Any]] = []
    for name in names:
        rate = best_lr(runs[name])
        curves = [next(r for r in record["runs"] if r["lr"] == rate)["curve"] for record in runs[name]]
        for points in zip(*curves, strict=True):
            values = [point[1] for point in points]
            rows.append([name, rate, points[0][0], sum(values) / len(values), min(values), max(values)])

    def draw(width: float) -> str:
        box = Box(left=46, top=28, width=width - (390 if width > 600 else 150), height=260)
        x = linear_scale([0.0, *(row[2] for row in rows)], box.left, box.right, floor=0.0)
        panel = Panel(box=box, x=x, y=linear_scale([0.0, 1.0], box.bottom, box.top, floor=0.0))
        panel.axes(title="held-out P@k", y_unit="%", x_label="optimiser steps")
        labels = []
        for name in names:
            mine, colour = [row for row in rows if row[0] == name], _colour(name)
            panel.ribbon([(r[2], r[4]) for r in mine], [(r[2], r[5]) for r in mine], colour)
            panel.line([(r[2], r[3]) for r in mine], colour, dash="" if "attention" in name else "5 3")
            labels.append((mine[-1][3], name if width > 600 else name[:18], colour))
        panel.end_labels(labels)
        return picture(width, box.bottom + 40, panel.marks, label="Routing precision over training steps")

    wide, narrow = both_sizes(draw)
    return Figure(
        title="Plateau and jump, with attention (solid) and without (dashed)", wide=wide, narrow=narrow,
        caption=f"Mean over seeds at the best learning rate; ribbon: lowest to highest seed. {_provenance(runs)}.",
        data=Data(name="transitions", columns=["arm", "lr", "step", "mean", "low", "high"], rows=rows),
    )  # fmt: skip


def spectra(runs: Runs) -> Figure | None:
    """Energy rank of the trained score form beside the untrained one."""
    names = [name for name, records in runs.items() if "k90" in records[0]["runs"][0]]
    if not names:
        return None
    rows: list[list[Any]] = []
    for name in names:
        rate = best_lr(runs[name])
        mine = [next(r for r in record["runs"] if r["lr"] == rate) for record in runs[name]]
        width = runs[name][0]["config"]["model"]["width"]
        means = [sum(r[key] for r in mine) / len(mine) for key in ("k90", "k90_untrained", "k90_input")]
        rows.append([name, width, *means, precision(runs[name]).mean])

    def draw(width: float) -> str:
        left, pitch = (330.0, 17.0) if width > 600 else (170.0, 17.0)
        box = Box(left=left, top=24, width=width - left - 26, height=pitch * len(rows))
        x = linear_scale([0.0, 0.5], box.left, box.right, floor=0.0)
        marks = [text("dimensions with 90 % of the energy, share of the width", 4, 14, class_="panel-title")]
        for value in x.ticks(5):
            marks.append(tag("line", class_="grid", x1=x(value), x2=x(value), y1=box.top, y2=box.bottom))
            marks.append(text(f"{100 * value:.0f} %", x(value), box.bottom + 15, class_="tick", text_anchor="middle"))
        for i, (name, size, trained, untrained, _, found) in enumerate(rows):
            y = box.top + (i + 0.5) * pitch
            short = name if width > 600 or len(name) < 27 else name[:25] + "…"
            marks.append(text(short, box.left - 8, y + 4, class_="row-label", text_anchor="end", title=name))
            at = x(untrained / size)
            marks.append(tag("line", class_="reference", x1=at, x2=at, y1=y - 7, y2=y + 7))
            words = f"{name}: {trained:.1f} of {size}, untrained {untrained:.1f}, precision {100 * found:.0f} %"
            style = f"fill:{_colour(name)}"
            marks.append(
                tag("circle", tag("title", words), class_="dot", cx=x(trained / size), cy=y, r=3.6, style=style)
            )
        return picture(width, box.bottom + 24, marks, label="Energy rank of the score form, trained and untrained")

    wide, narrow = both_sizes(draw)
    return Figure(
        title="The subspace, beside its untrained null", wide=wide, narrow=narrow,
        caption=f"Dot: trained W_q^T W_k, mean over seeds; dashed tick: the same weights before training. "
        f"{_provenance(runs)}.",
        data=Data(
            name="spectra", columns=["arm", "width", "k90", "k90_untrained", "k90_input", "precision"], rows=rows
        ),
    )  # fmt: skip


def pareto(runs: Runs, cost: Runs) -> Figure | None:
    """Precision against measured time and against measured memory, both labels of every mechanism."""
    # A GPU's record where there is one.
    record = next(iter(sorted(cost.get("bench", []), key=lambda r: str(r.get("device")), reverse=True)), None)
    if record is None:
        return None
    rows: list[list[Any]] = []
    for row in record["rows"]:
        for label in ("key", "value", ""):
            name = f"{row['name']}, {label}" if label else row["name"]
            if name in runs:
                size = (row["parameter_bytes"] + row["peak_bytes"]) / 1e6 if row["peak_bytes"] else math.nan
                rows.append([name, row["ms"], size, row["parameter_bytes"], precision(runs[name]).mean])
    if not rows:
        return None
    costs = [(1, "milliseconds a batch", "ms"), (2, "megabytes, weights and peak", "MB")]
    costs = [cost for cost in costs if not math.isnan(rows[0][cost[0]])]

    def draw(width: float) -> str:
        beside = width > 600
        each = width / (len(costs) if beside else 1)
        marks: list[str] = []
        for i, (column, words, unit) in enumerate(costs):
            left, top = (i * each, 28.0) if beside else (0.0, 28.0 + 350 * i)
            box = Box(left=left + 46, top=top, width=each - 196, height=270)
            marks += _front(rows, column, words, unit, box)
        return picture(
            width, (28 if beside else 28 + 350 * (len(costs) - 1)) + 310, marks,
            label="Routing precision against measured time and memory",
        )  # fmt: skip

    wide, narrow = both_sizes(draw)
    return Figure(
        title="Precision against cost", wide=wide, narrow=narrow,
        caption="Circles: label key; triangles: label value; lines: the best learned mechanism at each cost, the "
        f"last one named. Embedding, flow and selector for {record['batch']} sequences of {record['length']} tokens, "
        f"width {record['width']}, {record['device_name']}, median of at least "
        f"{min(row['n'] for row in record['rows'])} calls; memory: weights and the most that is alive at once. "
        f"Precision: {_provenance(runs)}.",
        data=Data(name="pareto", columns=["arm", "ms", "megabytes", "parameter_bytes", "precision"], rows=rows),
    )  # fmt: skip


def _front(rows: list[list[Any]], column: int, words: str, unit: str, box: Box) -> list[str]:
    """One panel: every mechanism, and for each label a line through the learned ones that nothing cheaper matches."""
    panel = Panel(
        box=box, x=log_scale([row[column] for row in rows], box.left, box.right),
        y=linear_scale([0.0, 1.0], box.bottom, box.top, floor=0.0),
    )  # fmt: skip
    panel.axes(title="routing precision", y_unit="%", x_label=f"{words} (log scale)")
    for row in rows:
        name, value, found = row[0], row[column], row[4]
        shape = "circle" if name.endswith("key") else "triangle"
        panel.dot((value, found), _colour(name), shape=shape, title=f"{name}: {100 * found:.1f} %, {value:.3g} {unit}")
    ends = []
    for label in ("key", "value"):
        front: list[list[Any]] = []
        mine = [row for row in rows if row[0].endswith(f", {label}") and not row[0].startswith(INDICES)]
        for row in sorted(mine, key=lambda row: (row[column], -row[4])):
            if not front or row[4] > front[-1][4] + 0.005:
                front.append(row)
        panel.line([(row[column], row[4]) for row in front], "var(--soft)", dash="4 3")
        ends += [(row[4], row[0], _colour(row[0])) for row in front[-1:]]
    panel.end_labels(ends)
    return [tag("g", *panel.marks)]
