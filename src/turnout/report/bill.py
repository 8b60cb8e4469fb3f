"""The page of language models: what inference costs by context and batch, and what routing costs in loss.

Drawn from the rows of `turnout bench inference` under results/bench, the trained arms under results/lm and the runs of
claim LM1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turnout.bench.rows import Row, machine, read_rows
from turnout.claims.store import results_dir
from turnout.errors import DataError
from turnout.report import language_models
from turnout.report.figure import Cell, Data, Figure
from turnout.report.palette import ink
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.svg import linear_scale, log_scale
from turnout.report.template import write_page

ARMS = ("dense", "static_hybrid", "routed", "local")
COLUMNS = (
    "device", "layers", "width", "context", "batch", "arm", "usage", "first token ms", "ms a token", "tokens/s",
    "KV MB a step", "peak GB", "J a token", "answer tokens/s", "answer vs dense",
)  # fmt: skip


def write_bill(out: Path, root: Path | None = None) -> Path:
    """Write the page `out` and the CSV files of its figures beside it.

    Args:
        root: of the results; None = the checkout's or the wheel's.
    Raises:
        DataError: no row is there.
        UnsupportedError: jinja2 is not installed.
    """
    root = root or results_dir()
    measured = (row for row in read_rows(root / "bench") if row["kind"] == "inference")
    rows = newest([row for row in measured if row["case"]["what"] == "decode"])
    if not rows:
        raise DataError("no row of the inference bill is there; measure some: turnout bench inference RECIPE")
    figures = [figure for size in sizes(rows) for figure in (times(size), answers(size)) if figure is not None]
    quality = (language_models.pareto(root), pareto(read_arms(root / "lm")))
    figures += [figure for figure in quality if figure is not None]
    return write_page(out, "bill.html.j2", figures, columns=COLUMNS, rows=table(rows), provenance=_provenance(rows))


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each machine, case and arm."""
    found: dict[str, Row] = {}
    for row in rows:
        case = {key: value for key, value in row["case"].items() if key not in ("seconds", "steps")}
        found[json.dumps([machine(row), case, row["arm"]], sort_keys=True)] = row
    return list(found.values())


def sizes(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by machine and model."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        case = row["case"]
        key = (machine(row), case["layers"], case["width"], case["usage"], case.get("compiled", False))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def table(rows: Sequence[Row]) -> list[list[str]]:
    """All rows as text, by model, context, batch and arm."""

    def order(row: Row) -> tuple[Any, ...]:
        case = row["case"]
        return machine(row), case["width"], case["context"], case["batch"], ARMS.index(row["arm"])

    texts = []
    for row in sorted(rows, key=order):
        case = row["case"]
        head = [
            machine(row),
            case["layers"],
            case["width"],
            f"{case['context']:,}",
            case["batch"],
            row["arm"] + compiled(row),
        ]
        if not row["ms"]:
            texts.append([*map(str, head), row["reason"], *[""] * 8])
            continue
        ratio = _ratio(row, rows)
        cells = [
            f"{100 * row['usage']:.1f} %", f"{row['ttft_ms']:.4g}", f"{row['ms']:.4g}", f"{row['tokens_per_s']:,.0f}",
            f"{row['kv_bytes'] / 1e6:,.1f}", "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}",
            "" if row["joule_per_token"] is None else f"{row['joule_per_token']:.3g}",
            f"{row['answer_tokens_per_s']:,.0f}", "" if ratio is None else f"{ratio:.2f}×",
        ]  # fmt: skip
        texts.append([*map(str, head), *cells])
    return texts


def compiled(row: Row) -> str:
    """What is added to a name where the steps ran as compiled blocks."""
    return ", compiled" if row["case"].get("compiled") else ""


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Tokens a second of a whole answer, over those of the dense model in the same place, which has one usage."""
    same = ("layers", "width", "context", "batch", "compiled")
    for other in rows:
        where = all(other["case"].get(name, False) == row["case"].get(name, False) for name in same) and machine(
            other
        ) == machine(row)
        if where and other["arm"] == "dense" and other["ms"]:
            return float(row["answer_tokens_per_s"] / other["answer_tokens_per_s"])
    return None


def times(rows: Sequence[Row]) -> Figure | None:
    """Milliseconds a token over the context, a panel for each batch."""
    good = [row for row in rows if row["ms"]]
    contexts = {row["case"]["context"] for row in good}
    if len(contexts) < 2:
        return None
    batches = sorted({row["case"]["batch"] for row in good})
    case = good[0]["case"]

    def draw(width: float) -> str:
        columns = len(batches) if width > 600 else 1
        each, marks, bottom = width / columns, list[str](), 0.0
        for i, batch in enumerate(batches):
            mine = [row for row in good if row["case"]["batch"] == batch]
            top = 30.0 if columns > 1 else 30.0 + 270 * i
            box = Box(left=(i if columns > 1 else 0) * each + 46, top=top, width=each - 46 - 96, height=200)
            bottom = max(bottom, box.bottom)
            marks += _panel(mine, box, f"batch {batch} (ms a token)")
        return picture(width, bottom + 42, marks, label="Milliseconds a token by context. The table has the numbers.")

    wide, narrow = both_sizes(draw)
    cells: list[list[Cell]] = [
        [
            row["arm"],
            row["case"]["context"],
            row["case"]["batch"],
            row["ms"],
            row["ms_p20"],
            row["ms_p80"],
            row["usage"],
        ]
        for row in good
    ]
    return Figure(
        title=f"A token, {case['layers']} layers of width {case['width']}{compiled(good[0])}", wide=wide, narrow=narrow,
        caption="Median, whiskers from the 20th to the 80th percentile; both axes logarithmic; the router's own cost "
        f"is included. Gates drawn at {100 * case['usage']:.3g} %. {_provenance(good)}.",
        data=Data(
            name=f"times-{case['width']}-{good[0]['device_kind']}{compiled(good[0])[2:]}",
            columns=["arm", "context", "batch", "ms", "ms_p20", "ms_p80", "usage"], rows=cells,
        ),
    )  # fmt: skip


def _panel(rows: Sequence[Row], box: Box, title: str) -> list[str]:
    values = [row[name] for row in rows for name in ("ms", "ms_p20", "ms_p80")]
    panel = Panel(
        box=box,
        x=log_scale([row["case"]["context"] for row in rows], box.left + 8, box.right - 8, kind="log2"),
        y=log_scale(values, box.bottom, box.top),
    )
    panel.axes(title=title, x_label="context (tokens)")
    labels = []
    for arm in ARMS:
        mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["case"]["context"])
        if not mine:
            continue
        colour, shape = _colour(arm), ink(arm).marker
        panel.line([(row["case"]["context"], row["ms"]) for row in mine], colour)
        for row in mine:
            at = row["case"]["context"]
            panel.whisker(at, row["ms_p20"], row["ms_p80"], colour)
            words = f"{arm}, {at:,} tokens: {row['ms']:.4g} ms, {row['kv_bytes'] / 1e6:,.1f} MB of keys and values"
            panel.dot((at, row["ms"]), colour, shape=shape, title=words)
        labels.append((mine[-1]["ms"], arm.replace("_", " "), colour))
    panel.end_labels(labels)
    return panel.marks


def answers(rows: Sequence[Row]) -> Figure | None:
    """Tokens a second of prompt and answer together, over the dense model's, by context and batch."""
    found = [(row, ratio) for row in rows if row["ms"] and (ratio := _ratio(row, rows)) and row["arm"] != "dense"]
    if len({row["case"]["context"] for row, _ in found}) < 2:
        return None
    case = found[0][0]["case"]
    lines = sorted({(row["arm"], row["case"]["batch"]) for row, _ in found})

    def draw(width: float) -> str:
        box = Box(left=46, top=30, width=width - (220 if width > 600 else 150), height=220)
        panel = Panel(
            box=box,
            x=log_scale([row["case"]["context"] for row, _ in found], box.left + 8, box.right - 8, kind="log2"),
            y=linear_scale([0.0, 1.0, *(ratio for _, ratio in found)], box.bottom, box.top, floor=0.0),
        )
        panel.axes(title="tokens/s of prompt and answer, over dense", y_unit="×", x_label="context (tokens)")
        panel.reference(1.0, "dense")
        labels = []
        for arm, batch in lines:
            mine = sorted(
                (row["case"]["context"], ratio)
                for row, ratio in found
                if (row["arm"], row["case"]["batch"]) == (arm, batch)
            )
            panel.line(mine, _colour(arm), dash="" if batch == lines[-1][1] else "5 3")
            for at, ratio in mine:
                panel.dot((at, ratio), _colour(arm), shape=ink(arm).marker, title=f"{arm}, batch {batch}: {ratio:.2f}×")
            labels.append((mine[-1][1], f"{arm.replace('_', ' ')}, batch {batch}", _colour(arm)))
        panel.end_labels(labels)
        return picture(width, box.bottom + 42, panel.marks, label="Tokens a second over dense by context")

    wide, narrow = both_sizes(draw)
    return Figure(
        title=f"A whole answer of {found[0][0]['answer']} tokens, {case['layers']} layers of width {case['width']}"
        + compiled(rows[0]),
        wide=wide, narrow=narrow,
        caption=f"Time to the first token and all further ones. Above 1 is faster than dense. {_provenance(rows)}.",
        data=Data(
            name=f"answers-{case['width']}-{found[0][0]['device_kind']}{compiled(rows[0])[2:]}",
            columns=["arm", "context", "batch", "answer_tokens_per_s", "over_dense"],
            rows=[
                [row["arm"], row["case"]["context"], row["case"]["batch"], row["answer_tokens_per_s"], ratio]
                for row, ratio in found
            ],
        ),
    )  # fmt: skip


def read_arms(folder: Path) -> list[dict[str, Any]]:
    """Trained arms: summary, final evaluation and pace of each run; empty when none is there.

    Raises:
        DataError: a file is not a run.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            loss, usage = run["eval"]["loss"], run["eval"]["usage"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a trained arm ({error!r}); restore it, or remove it") from error
        found.append({"arm": path.stem.rpartition("-")[0], "loss": loss, "usage": usage, "run": run})
    return found


def attending(arm: dict[str, Any]) -> float:
    """Share of the (token, layer) slots that attend to the whole context."""
    if arm["usage"] is not None:
        return float(arm["usage"])
    layout = str(arm["run"]["summary"]["layout"])
    return layout.count("A") / len(layout)


def pareto(arms: Sequence[dict[str, Any]]) -> Figure | None:
    """Loss over usage, a dot a run."""
    if not arms:
        return None
    names = {"static": "static_hybrid", "window": "local"}

    def draw(width: float) -> str:
        box = Box(left=56, top=30, width=width - (180 if width > 600 else 150), height=240)
        losses = [arm["loss"] for arm in arms]
        panel = Panel(
            box=box, x=linear_scale([0.0, 1.0], box.left, box.right, floor=0.0),
            y=linear_scale(losses, box.bottom, box.top),
        )  # fmt: skip
        panel.axes(title="held-out loss (nats a token)", x_unit="%", x_label="slots that attend to everything")
        labels: dict[str, tuple[float, str, str]] = {}
        for arm in arms:
            name = names.get(arm["arm"], arm["arm"])
            words = f"{arm['arm']}: loss {arm['loss']:.4f} at {100 * attending(arm):.1f} %"
            panel.dot((attending(arm), arm["loss"]), _colour(name), shape=ink(name).marker, size=4.5, title=words)
            labels[arm["arm"]] = (arm["loss"], f"{arm['arm']} {arm['loss']:.3f}", _colour(name))
        panel.end_labels(sorted(labels.values(), reverse=True))
        return picture(width, box.bottom + 42, panel.marks, label="Held-out loss over usage by arm")

    wide, narrow = both_sizes(draw)
    run = arms[0]["run"]
    steps, seeds = run["summary"]["steps"], len({arm["run"]["summary"]["seed"] for arm in arms})
    return Figure(
        title="Which loses how much at which usage", wide=wide, narrow=narrow,
        caption=f"Equal tokens: {steps:,} steps of {run['config']['optim']['batch']} × "
        f"{run['config']['task']['length']:,}; {seeds} seed(s), a dot a run, so differences within the spread of seeds "
        f"mean nothing; {run.get('device_name')}, commit {str(run.get('commit'))[:12]}.",
        data=Data(
            name="pareto", columns=["arm", "usage", "loss", "n", "tokens_per_s", "params"],
            rows=[
                [a["arm"], attending(a), a["loss"], a["run"]["eval"]["n"], a["run"].get("tokens_per_s"),
                 a["run"]["summary"]["params"]]
                for a in arms
            ],
        ),
    )  # fmt: skip


def _colour(arm: str) -> str:
    found = ink(arm)
    return f"light-dark({found.light},{found.dark})"


def _provenance(rows: Sequence[Row]) -> str:
    devices = ", ".join(sorted({machine(row) for row in rows}))
    commits = ", ".join(sorted({str(row["commit"])[:12] for row in rows}))
    return f"{len(rows)} rows, {devices}, commit {commits}"
