"""Figures of how far a model looks: mass by distance and domain, span of every head, reachable distance by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.probe.distance import Distances
from turnout.report.figure import Cell, Data
from turnout.report.palette import ink
from turnout.report.plot import Box, Panel, picture
from turnout.report.svg import linear_scale, log_scale, tag, text

_DOMAIN_INKS = ("linear", "random", "oracle", "static_hybrid", "frozen", "ema")


def distance_figure(found: Distances) -> str:
    """Cumulative attention mass by distance, one line a domain, and the 90 % span of each head by layer."""
    domains = [name for name in found.mass if name != "all"] or ["all"]
    ends = [float(edge) for edge in [*found.edges[1:], 2 * max(1, found.edges[-1])]]
    left = Panel(
        box=Box(left=56, top=34, width=330, height=230),
        x=log_scale(ends, 56, 386, kind="log2"),
        y=linear_scale([0.0, 1.0], 264, 34, floor=0.0),
    )
    left.axes(title="attention mass within a distance", y_unit="%", x_label="distance, tokens")
    labels = []
    for name, colour in zip(domains, _colours(len(domains)), strict=True):
        shares = found.mass[name].mean((0, 1)).cumsum(0).tolist()
        left.line(list(zip(ends, shares, strict=True)), colour)
        labels.append((shares[len(shares) // 2], name, colour))
    right = Panel(
        box=Box(left=540, top=34, width=330, height=230),
        x=linear_scale([0.0, float(len(found.spans))], 540, 870, floor=0.0),
        y=log_scale(ends, 264, 34, kind="log2"),
    )
    right.axes(title="90 % span of each head, tokens", x_label="layer")
    for layer, heads in enumerate(found.spans):
        for head, span in enumerate(sorted(heads)):
            at = layer + 0.15 + 0.7 * head / max(1, len(heads) - 1)
            right.dot((at, float(span)), ink("linear").light, title=f"layer {layer}: {span} tokens")
    legend = [
        tag("g", text(name, 394, 60 + 15 * i, class_="direct", style=f"fill:{colour}"))
        for i, (_, name, colour) in enumerate(labels)
    ]
    return picture(
        900, 310, [*left.marks, *right.marks, *legend], label="attention mass by distance and spans of heads"
    )


def reach_figure(rows: Sequence[dict[str, Any]], lost: dict[str, dict[str, list[float]]]) -> str:
    """Farthest position that the last token can have read from after each layer, and the mass that a pattern loses."""
    far = [max(1.0, float(row["farthest"])) for row in rows]
    layers = [float(row["layer"] + 1) for row in rows]
    left = Panel(
        box=Box(left=56, top=34, width=330, height=230),
        x=linear_scale([0.0, *layers], 56, 386, floor=0.0),
        y=log_scale([1.0, *far], 264, 34, kind="log2"),
    )
    left.axes(title="farthest reachable token", x_label="layers")
    left.line(list(zip(layers, far, strict=True)), ink("linear").light)
    for at, value in zip(layers, far, strict=True):
        left.dot((at, value), ink("linear").light, title=f"{value:.0f} tokens")
    shares = [v for by in lost.values() for values in by.values() for v in values]
    right = Panel(
        box=Box(left=500, top=34, width=270, height=230),
        x=linear_scale([0.0, *layers], 500, 770, floor=0.0),
        y=linear_scale([0.0, *shares], 264, 34, floor=0.0),
    )
    right.axes(title="attention mass lost", y_unit="%", x_label="layer")
    names = [(spec, domain) for spec, by in lost.items() for domain in by if domain != "all" or len(by) == 1]
    for (spec, domain), colour in zip(names, _colours(len(names)), strict=True):
        values = lost[spec][domain]
        right.line([(i + 1.0, v) for i, v in enumerate(values)], colour)
    right.end_labels(
        [
            (lost[s][d][-1], d if len(lost) == 1 else f"{s} {d}", c)
            for (s, d), c in zip(names, _colours(len(names)), strict=True)
        ]
    )
    return picture(900, 310, [*left.marks, *right.marks], label="reachable distance by layer and attention mass lost")


def distance_data(found: Distances) -> Data:
    """The masses as a table: domain, layer, head, distance, share."""
    rows: list[list[Cell]] = [
        [domain, layer, head, found.edges[i], float(share)]
        for domain, mass in found.mass.items()
        for layer, heads in enumerate(mass)
        for head, shares in enumerate(heads)
        for i, share in enumerate(shares)
    ]
    return Data(name="distance", columns=["domain", "layer", "head", "from_distance", "share"], rows=rows)


def _colours(n: int) -> list[str]:
    return [ink(_DOMAIN_INKS[i % len(_DOMAIN_INKS)]).light for i in range(n)]
