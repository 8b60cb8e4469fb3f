"""Held-out loss against tokens on a small fixed corpus (claim TH7): who learns fastest, and who memorises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnout.claims.data_efficiency import PASS
from turnout.claims.store import summaries
from turnout.report.figure import Cell, Data, Figure
from turnout.report.palette import assign
from turnout.report.plot import Box, Panel, both_sizes, picture
from turnout.report.svg import linear_scale, log_scale

# Arms that are drawn, where they have runs, each with the mechanism whose colour it takes; all arms are in the data.
SHOWN = {
    "dense": "dense", "forgetting": "ema", "learned constant decay": "threshold", "fixed decay": "linear",
    "ALiBi": "mlp", "window 64": "local", "dilated": "random", "convolution + dense": "static_hybrid",
    "dense, weight decay 1": "always", "forgetting, weight decay 1": "oracle", "dense, dropout 0.3": "frozen",
}  # fmt: skip
Curve = list[tuple[float, float]]


def curves_figure(root: Path) -> Figure | None:
    """The figure; None before dense attention has runs."""
    seen = summaries("TH7", root)
    if "dense" not in seen:
        return None
    curves = {name: _mean(seen[name]) for name in SHOWN if name in seen}
    wide, narrow = both_sizes(lambda width: _draw(curves, width))
    rows: list[list[Cell]] = [
        [name, r["seed"], step, step * _tokens(r), loss]
        for name, records in seen.items()
        for r in records
        for step, loss in r["curve"]
    ]
    first = seen["dense"][0]
    seeds = sorted({len(seen[name]) for name in curves})
    return Figure(
        title="One megabyte, read again and again",
        wide=wide,
        narrow=narrow,
        caption=f"Held-out loss of {first['params'] / 1e6:.1f}M weights while one megabyte of text is read up to "
        f"16 times (a pass is {PASS} steps of {_tokens(first):,} bytes); means of {seeds[0]} to {seeds[-1]} seeds. "
        f"{first['device_name']} · commit {first['commit'][:10]}.",
        data=Data(name="data_efficiency", columns=["arm", "seed", "step", "tokens", "loss"], rows=rows),
    )


def _tokens(record: dict[str, Any]) -> int:
    """Of one step."""
    optim = record["config"]["optim"]
    return int(optim["batch"] * optim["accumulate"] * record["config"]["task"]["length"])


def _mean(records: list[dict[str, Any]]) -> Curve:
    """Mean loss over seeds at the evaluations that all of them have; from the first pass on."""
    found = [dict((step * _tokens(r), loss) for step, loss in r["curve"] if step >= PASS) for r in records]
    shared = set.intersection(*(set(one) for one in found))
    return [(at, sum(one[at] for one in found) / len(found)) for at in sorted(shared)]


def _draw(curves: dict[str, Curve], width: float) -> str:
    box = Box(left=60, top=30, width=width - (230 if width > 600 else 140), height=380)
    losses = [loss for curve in curves.values() for _, loss in curve]
    places = [at / 1e6 for curve in curves.values() for at, _ in curve]
    x = log_scale(places, box.left, box.right - 8, kind="log2", zero_gap=0)
    panel = Panel(box=box, x=x, y=linear_scale(losses, box.bottom - 8, box.top + 8, floor=min(losses) - 0.02))
    panel.axes(title="Held-out loss (nats per byte)", x_label="bytes read (millions)")
    inks, labels, told = assign((name, (SHOWN[name],)) for name in curves), [], []
    for name, curve in curves.items():
        if not curve:
            continue
        colour = f"light-dark({inks[name].light},{inks[name].dark})"
        panel.line([(at / 1e6, loss) for at, loss in curve], colour, dash="4 3" if ", " in name else "")
        at, least = min(curve, key=lambda point: point[1])
        words = f"{name}: least {least:.3f} after {at / 1e6:.1f}M bytes, {curve[-1][1]:.3f} at the end"
        panel.dot((at / 1e6, least), colour, size=4, title=words, shape=inks[name].marker)
        labels.append((curve[-1][1], name, colour))
        told.append(words)
    panel.end_labels(labels)
    return picture(width, box.bottom + 40, panel.marks, label=f"Held-out loss against bytes read. {'; '.join(told)}.")
