"""Loss against usage of the language models of claim LM1: the Pareto curve of routing, with its controls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from turnout.bench.rows import Row, read_rows
from turnout.claims.language_models import spread, usage_of
from turnout.claims.store import summaries
from turnout.report.figure import Cell, Data, Figure
from turnout.report.numbers import percent
from turnout.report.palette import ink
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.svg import linear_scale
from turnout.stats import mean_interval

# Arms that have a usage, by the first word of their name, and those that are one line across: mechanism of each.
CURVES = {
    "routed": "ema",
    "early": "frozen",
    "even": "mlp",
    "alternate": "threshold",
    "static": "static_hybrid",
    "random": "random",
}
COLUMNS = (
    "arm", "usage", "loss, nats a token", "seeds", "M weights", "K tokens/s training", "ms a step",
    "MB of K and V a step", "mJ a token",
)  # fmt: skip
LINES = {"dense": "dense", "dense + local": "always", "window": "local"}


def pareto(root: Path) -> Figure | None:
    """The figure; None before any of its runs is there."""
    seen = summaries("LM1", root)
    if not any(name.split()[0] in ("routed", "early", "even") for name in seen):
        return None
    curves = {word: sorted(_point(name, records) for name, records in seen.items() if name.split()[0] == word)
              for word in CURVES}  # fmt: skip
    lines = {name: mean_interval([r["loss"] for r in seen[name]]) for name in LINES if name in seen}
    wide, narrow = both_sizes(lambda width: _draw(curves, lines, width))
    rows: list[list[Cell]] = [
        [name, r["seed"], usage_of([r]), r["loss"], r["tokens_per_s"]]
        for name, records in seen.items()
        for r in records
    ]
    first = next(iter(seen.values()))[0]
    seeds = sorted({len(records) for records in seen.values()})
    return Figure(
        title="What routing costs a language model",
        wide=wide,
        narrow=narrow,
        caption=f"Held-out loss of 124M weights after {first['tokens'] / 1e6:.0f}M tokens of {first['length']:,}; "
        f"means and 95 % intervals of {seeds[0]} to {seeds[-1]} seeds; horizontal lines have one usage only. "
        f"n = {first['n_eval']:,} targets a seed · {first['device_name']} · commit {first['commit'][:10]}.",
        data=Data(name="language_models", columns=["arm", "seed", "usage", "loss", "tokens_per_s"], rows=rows),
    )


def table(root: Path) -> list[str]:
    """Lines of Markdown, an arm each, by loss; the last three columns are a decoding step of 8 sequences of 32K."""
    seen = summaries("LM1", root)
    bill = _bill(root)
    found = []
    for name, records in seen.items():
        usage, mean, half = _point(name, records)
        shown = "" if set(records[0]["layout"]) == {"L"} else percent(usage)
        # Some seeds shared their GPU with other work; the fastest of them did so least.
        pace = max(record["tokens_per_s"] for record in records)
        row = bill.get(_priced(name))
        joules = row and row["joule_per_token"]
        cost = ("", "") if row is None else (f"{row['ms']:.2f}", f"{row['kv_bytes'] / 1e6:,.0f}")
        cells = (
            name, shown, spread(mean, half), len(records), f"{records[0]['params'] / 1e6:.0f}", f"{pace / 1e3:.0f}",
            *cost, f"{1e3 * joules:.1f}" if joules else "",
        )  # fmt: skip
        found.append((mean, f"| {' | '.join(map(str, cells))} |"))
    return [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *(line for _, line in sorted(found))]


def _bill(root: Path) -> dict[tuple[str, float], Row]:
    """Compiled steps of the 124M models, eight sequences of 32K: by arm and usage, the last row of each."""
    wanted = {"layers": 12, "width": 768, "context": 32768, "batch": 8, "compiled": True, "what": "decode"}
    rows = (row for row in read_rows(root / "bench") if row["kind"] == "inference" and row["ms"])
    return {
        (row["arm"], 0.0 if row["arm"] in ("dense", "local") else row["case"]["usage"]): row
        for row in rows
        if wanted.items() <= row["case"].items() and row["device_kind"] == "cuda"
    }


def _priced(name: str) -> tuple[str, float]:
    """Arm and usage of the bill that prices a trained arm: routers are priced as the learned one."""
    word, _, usage = name.partition(" ")
    if word in LINES or word == "alternate":
        return "" if usage else LINES[word], 0.0
    return "static_hybrid" if word == "static" else "routed", float(usage)


def _point(name: str, records: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Usage, mean loss, half its interval; a static hybrid's usage is that of its layout."""
    mean, half = mean_interval([r["loss"] for r in records])
    return usage_of(records), mean, half


def _draw(curves: dict[str, list[tuple[float, float, float]]], lines: dict[str, tuple[float, float]],
          width: float) -> str:  # fmt: skip
    box = Box(left=60, top=30, width=width - (220 if width > 600 else 130), height=360)
    points = [point for curve in curves.values() for point in curve]
    edges = [mean + sign * _finite(half) for _, mean, half in points for sign in (-1, 1)]
    edges += [mean for mean, _ in lines.values()]
    x = linear_scale([0.0, *(usage for usage, _, _ in points)], box.left, box.right - 8)
    panel = Panel(box=box, x=x, y=linear_scale(edges, box.bottom - 8, box.top + 8))
    panel.axes(title="Loss (nats per token)", x_unit="%", x_label="usage (% of attention slots)")
    labels, told = [], []
    for name, (mean, half) in lines.items():
        panel.line([(x.low, mean), (x.high, mean)], _colour(LINES[name]), dash="5 4")
        labels.append((mean, name, _colour(LINES[name])))
        told.append(f"{name} {spread(mean, half)}")
    for word, curve in curves.items():
        if not curve:
            continue
        colour = _colour(CURVES[word])
        panel.line([(usage, mean) for usage, mean, _ in curve], colour)
        for usage, mean, half in curve:
            panel.whisker(usage, mean - _finite(half), mean + _finite(half), colour)
            words = f"{word} at {percent(usage)}: {spread(mean, half)}"
            panel.dot((usage, mean), colour, size=4.4, title=words, shape=ink(CURVES[word]).marker)
            told.append(words)
        labels.append((curve[-1][1], word, colour))
    panel.end_labels(labels)
    return picture(width, box.bottom + 40, panel.marks, label=f"Loss against usage. {'; '.join(told)}.")


def _finite(half: float) -> float:
    return half if math.isfinite(half) else 0.0


def _colour(mechanism: str) -> str:
    found = ink(mechanism)
    return f"light-dark({found.light},{found.dark})"
