"""Panels: a plot area with axes, lines, ribbons, points, whiskers and direct labels. Colours are CSS expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from turnout.report.svg import Scale, path, short, spread, tag, text, tick_label

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """The plot area of a panel inside its picture, in pixels."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """x of the right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """y of the lower edge."""
        return self.top + self.height


@dataclass(kw_only=True, slots=True)
class Panel:
    """One plot area; marks are drawn in the order in which they were added, axes below them."""

    box: Box
    x: Scale
    y: Scale
    marks: list[str] = field(default_factory=list)

    def axes(self, *, title: str, y_unit: str = "", x_unit: str = "", x_label: str = "", x_ticks: bool = True) -> None:
        """Grid, tick labels, a title that names the y axis with its unit, and the x label below."""
        box = self.box
        for value in self.y.ticks(max(2, int(box.height // 36))):
            y = self.y(value)
            self.marks.append(tag("line", class_="grid", x1=box.left, x2=box.right, y1=y, y2=y))
            self.marks.append(text(tick_label(value, y_unit), box.left - 6, y + 3.5, class_="tick", text_anchor="end"))
        for value in self.x.ticks(max(2, int(box.width // 80))):
            x = self.x(value)
            self.marks.append(tag("line", class_="grid", x1=x, x2=x, y1=box.top, y2=box.bottom))
            if x_ticks:
                label = tick_label(value, x_unit)
                self.marks.append(text(label, x, box.bottom + 15, class_="tick", text_anchor="middle"))
        self.marks.append(tag("line", class_="axis", x1=box.left, x2=box.right, y1=box.bottom, y2=box.bottom))
        self.marks.append(text(title, box.left, box.top - 8, class_="panel-title"))
        if x_label:
            self.marks.append(text(x_label, box.right, box.bottom + 31, class_="axis-label", text_anchor="end"))

    def line(
        self, points: Sequence[Point], colour: str, *, width: float = 1.5, dash: str = "", opacity: float = 1
    ) -> None:
        """A polyline; points with NaN interrupt it."""
        drawn = path([(self.x(x), self.y(y)) for x, y in points])
        style = f"stroke:{colour};stroke-width:{short(width)}"
        if dash:
            style += f";stroke-dasharray:{dash}"
        if opacity < 1:
            style += f";opacity:{short(opacity)}"
        if drawn:
            self.marks.append(tag("path", class_="line", d=drawn, style=style))

    def ribbon(self, lower: Sequence[Point], upper: Sequence[Point], colour: str) -> None:
        """The area between two lines with the same x values."""
        pairs = [(a, b) for a, b in zip(lower, upper, strict=True) if not math.isnan(a[1]) and not math.isnan(b[1])]
        if len(pairs) < 2:
            return
        edge = [(self.x(a[0]), self.y(a[1])) for a, _ in pairs] + [(self.x(b[0]), self.y(b[1])) for _, b in pairs[::-1]]
        self.marks.append(tag("path", class_="ribbon", d=path(edge) + "Z", style=f"fill:{colour}"))

    def dot(self, at: Point, colour: str, *, shape: str = "circle", size: float = 3.5, title: str = "") -> None:
        """A marker with a native tooltip."""
        if math.isnan(at[0]) or math.isnan(at[1]):
            return
        mark = marker(shape, self.x(at[0]), self.y(at[1]), size)
        children = (tag("title", _escaped(title)),) if title else ()
        self.marks.append(tag("path", *children, class_="dot", d=mark, style=f"fill:{colour}"))

    def whisker(self, at: float, low: float, high: float, colour: str, *, horizontal: bool = False) -> None:
        """A thin line from low to high at x = `at` (or y = `at` when horizontal)."""
        if any(math.isnan(value) for value in (at, low, high)):
            return
        ends = (
            [(self.x(v), self.y(at)) for v in (low, high)]
            if horizontal
            else [(self.x(at), self.y(v)) for v in (low, high)]
        )
        self.marks.append(tag("path", class_="whisker", d=path(ends), style=f"stroke:{colour}"))

    def reference(self, value: float, label: str, *, end: float | None = None) -> None:
        """A dashed horizontal line with its name on it; the name ends at x = `end`, by default at the right edge."""
        y = self.y(value)
        self.marks.append(tag("line", class_="reference", x1=self.box.left, x2=self.box.right, y1=y, y2=y))
        above = y - self.box.top > 16
        place = y - 5 if above else y + 12
        self.marks.append(
            text(label, self.box.right - 4 if end is None else end, place, class_="reference-label", text_anchor="end")
        )

    def end_labels(self, labels: Sequence[tuple[float, str, str]], *, gap: float = 12.5) -> None:
        """Direct labels right of the plot: (y value, words, colour), moved apart and thinned to the room there is."""
        room = int(self.box.height // gap) + 1
        stride = math.ceil(len(labels) / room) if labels else 1
        kept = [label for label in labels[::stride] if not math.isnan(label[0])]
        places = spread([self.y(value) for value, _, _ in kept], gap, self.box.top + 2, self.box.bottom)
        for (value, words, colour), place in zip(kept, places, strict=True):
            y = self.y(value)
            if abs(place - y) > 4:
                elbow = [(self.box.right + 1, y), (self.box.right + 7, place)]
                self.marks.append(tag("path", class_="leader", d=path(elbow)))
            self.marks.append(text(words, self.box.right + 9, place + 4, class_="direct", style=f"fill:{colour}"))


def picture(width: float, height: float, marks: Sequence[str], *, label: str, css: str = "") -> str:
    """The svg element; `label` is what a screen reader says."""
    return tag(
        "svg",
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        class_=f"plot {css}".strip(),
        viewBox=f"0 0 {short(width)} {short(height)}",
        role="img",
        aria_label=label,
    )


def marker(shape: str, x: float, y: float, size: float) -> str:
    """Path data of a marker centred at (x, y); `size` is the radius of the circle, the others have about its area."""
    s = size
    polygons: dict[str, Sequence[Point]] = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
        "down": ((0, 1.3), (1.2, -0.9), (-1.2, -0.9)),
        "cross": (
            (-1.2, -0.7), (-0.7, -1.2), (0, -0.5), (0.7, -1.2), (1.2, -0.7), (0.5, 0),
            (1.2, 0.7), (0.7, 1.2), (0, 0.5), (-0.7, 1.2), (-1.2, 0.7), (-0.5, 0),
        ),
        "plus": (
            (-0.4, -1.3), (0.4, -1.3), (0.4, -0.4), (1.3, -0.4), (1.3, 0.4), (0.4, 0.4),
            (0.4, 1.3), (-0.4, 1.3), (-0.4, 0.4), (-1.3, 0.4), (-1.3, -0.4), (-0.4, -0.4),
        ),
    }  # fmt: skip
    if shape in polygons:
        return path([(x + s * dx, y + s * dy) for dx, dy in polygons[shape]]) + "Z"
    r = short(s)
    return f"M{short(x - s)} {short(y)}a{r} {r} 0 1 0 {short(2 * s)} 0a{r} {r} 0 1 0 {short(-2 * s)} 0Z"


def both_sizes(draw: Callable[[float], str]) -> tuple[str, str]:
    """The same figure for a wide page and for a phone, so that text never shrinks with the picture."""
    return draw(980.0), draw(390.0)


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
