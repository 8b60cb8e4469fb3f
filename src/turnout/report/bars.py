"""A bar chart of signed values with their names: what ablations cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.palette import PALETTE
from turnout.report.svg import linear_scale, tag, text

ROW, LEFT, RIGHT, TOP, BOTTOM = 20.0, 190.0, 70.0, 34.0, 30.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        name: at its left; value: its length; written: the number at its end.
        control: drawn in the controls' colour.
    """

    name: str
    value: float
    written: str
    control: bool = False


def bar_chart(bars: Sequence[Bar], *, title: str, axis: str, width: float = 760.0) -> str:
    """A standalone SVG of horizontal bars in the order given; the colours are the palette's."""
    height = TOP + ROW * len(bars) + BOTTOM
    scale = linear_scale([0.0, *(bar.value for bar in bars)], LEFT, width - RIGHT)
    inks = {False: PALETTE["routed"].light, True: PALETTE["random"].light}
    marks = [
        tag("rect", x=0, y=0, width=width, height=height, fill="#ffffff"),
        text(title, 10.0, 20.0, font_weight="bold"),
        tag("line", x1=scale(0.0), x2=scale(0.0), y1=TOP, y2=height - BOTTOM, stroke="#1a1a1a"),
        text(axis, scale(0.0), height - 10.0, text_anchor="middle"),
    ]
    for i, bar in enumerate(bars):
        y = TOP + ROW * i
        ends = sorted((scale(0.0), scale(bar.value)))
        marks += [
            text(bar.name, LEFT - 8.0, y + 14.0, text_anchor="end"),
            tag("rect", x=ends[0], y=y + 3.0, width=max(0.5, ends[1] - ends[0]), height=ROW - 6.0,
                fill=inks[bar.control]),
            text(bar.written, ends[1] + 5.0, y + 14.0),
        ]  # fmt: skip
    return tag(
        "svg", *marks, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}", width=width,
        height=height, font_family="sans-serif", font_size=12,
    )  # fmt: skip
