"""A small SVG writer: elements, scales and ticks. Text is escaped; colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from turnout.report.numbers import NO_BREAK, significant


def tag(name: str, *children: str, **attributes: object) -> str:
    """`tag("line", x1=0, stroke_width=2)`; None leaves an attribute out. Children are markup, already escaped."""
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        written = short(value) if isinstance(value, float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(written)}"')
    head = " ".join(parts)
    return f"<{head}>{''.join(children)}</{name}>" if children else f"<{head}/>"


def text(content: str, x: float, y: float, *, title: str | None = None, **attributes: object) -> str:
    """A text element at (x, y)."""
    children = [escape(content)] + ([tag("title", escape(title))] if title else [])
    return tag("text", *children, x=x, y=y, **attributes)


def short(value: float) -> str:
    """At most two decimals, no trailing zeros: coordinates dominate the size of a page."""
    written = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if written in ("", "-0") else written


def path(points: Sequence[tuple[float, float]]) -> str:
    """Path data of a polyline; NaN in either coordinate lifts the pen. A lone point becomes a dot (round line ends)."""
    parts: list[str] = []
    drawn = 0
    for x, y in [*points, (math.nan, math.nan)]:
        if math.isnan(x) or math.isnan(y):
            parts += ["h0"] if drawn == 1 else []
            drawn = 0
            continue
        parts.append(f"{'L' if drawn else 'M'}{short(x)} {short(y)}")
        drawn += 1
    return "".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Data → pixels. `low` maps to `start`, `high` to `end`.

    Attributes:
        kind: "linear", "log" (base 10) or "log2".
        zero_gap: log scales only: pixels between `start`, where 0 is drawn, and the smallest positive value; 0 = no row
            for zero.
    """

    low: float
    high: float
    start: float
    end: float
    kind: str = "linear"
    zero_gap: float = 0.0

    def __call__(self, value: float) -> float:
        """Pixel of a value; values outside are clipped to the ends, NaN stays NaN."""
        if math.isnan(value):
            return math.nan
        sign = 1 if self.end >= self.start else -1
        start = self.start + sign * self.zero_gap
        if self.kind == "linear":
            share = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            return self.start
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return start + min(1.0, max(0.0, share)) * (self.end - start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values to label, ascending; a log scale with a zero row starts with 0."""
        if self.kind == "linear":
            return _linear_ticks(self.low, self.high, about)
        if self.kind == "log2":
            powers = [2.0**k for k in range(math.floor(math.log2(self.low)), math.ceil(math.log2(self.high)) + 1)]
            ticks = [value for value in powers if self.low * 0.999 <= value <= self.high * 1.001]
            stride = max(1, math.ceil(len(ticks) / (about + 3)))
            return ticks[::-1][::stride][::-1]
        ticks = _log_ticks(self.low, self.high, about)
        return [0.0, *ticks] if self.zero_gap else ticks


_NOTHING = 1e-300


def linear_scale(values: Sequence[float], start: float, end: float, *, floor: float | None = None) -> Scale:
    """A linear scale that holds all values (and `floor`), rounded outward to the nearest tick."""
    # A fifth of a number below 1e-300 may be 0, which is no step.
    finite = [value if abs(value) > _NOTHING else 0.0 for value in values if math.isfinite(value)]
    kept = finite + ([floor] if floor is not None else [])
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
        low = floor if floor is not None else low
    step = _round_step((high - low) / 5)
    low = low if floor is not None and low == floor else math.floor(low / step + 1e-9) * step
    return Scale(low=low, high=math.ceil(high / step - 1e-9) * step, start=start, end=end)


def log_scale(values: Sequence[float], start: float, end: float, *, kind: str = "log", zero_gap: float = 16.0) -> Scale:
    """A log scale that holds all positive values; a row for 0 is added when 0 occurs."""
    kept = [value for value in values if math.isfinite(value)]
    positive = [value for value in kept if value > 0]
    base = 2.0 if kind == "log2" else 10.0
    low, high = (min(positive), max(positive)) if positive else (1.0 / base, 1.0)
    if kind == "log":
        low, high = _round_log(low, up=False), _round_log(high, up=True)
    if low == high:
        low, high = low / base, high * base
    has_zero = any(value <= 0 for value in kept)
    return Scale(low=low, high=high, start=start, end=end, kind=kind, zero_gap=zero_gap if has_zero else 0.0)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: as near as possible to `wanted`, at least `gap` apart, inside [low, high] when they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [min(max(wanted[i], low), high) for i in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap)
    if placed and placed[-1] > high:
        placed[-1] = high
        for k in range(len(placed) - 2, -1, -1):
            placed[k] = min(placed[k], placed[k + 1] - gap)
    out = [0.0] * len(wanted)
    for i, value in zip(order, placed, strict=True):
        out[i] = value
    return out


def tick_label(value: float, unit: str = "") -> str:
    """A tick in its unit: "%" multiplies by 100; without a unit, 10,000 and more use k, M, G, T."""
    if unit == "%":
        return f"{_plain(100 * value)}{NO_BREAK}%"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            shown = value / (1e3 if prefix == "k" else size)
            # 32,768 is shorter and plainer than 32.768k.
            return _plain(value) if prefix == "k" and round(shown, 1) != shown else _plain(shown) + prefix
    return _plain(value)


def _plain(value: float) -> str:
    written = f"{value:.6g}"
    return significant(value, 1) if "e" in written else (f"{int(value):,}" if float(value).is_integer() else written)


def _round_step(raw: float) -> float:
    size = 10.0 ** math.floor(math.log10(raw))
    return next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)


def _linear_ticks(low: float, high: float, about: int) -> list[float]:
    step = _round_step((high - low) / about)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _round_log(value: float, *, up: bool) -> float:
    """The next of 1, 2, 5 × 10^k below or above."""
    size = 10.0 ** math.floor(math.log10(value) + 1e-9)
    steps = [size * m for m in (1, 2, 5, 10)]
    if up:
        return next(step for step in steps if step >= value * 0.999999)
    return next(step for step in reversed(steps) if step <= value * 1.000001)


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    for multiples in ((1, 2, 5), (1,)):
        ticks = [m * 10.0**k for k in decades for m in multiples if low * 0.999 <= m * 10.0**k <= high * 1.001]
        if len(ticks) <= about + 2:
            return ticks
    stride = math.ceil(len(ticks) / (about + 1))
    return ticks[::-1][::stride][::-1]
