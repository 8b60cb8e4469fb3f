"""How numbers are written: as many digits as they carry, never rounded into a claim (99.96 % is not 100 %)."""

from __future__ import annotations

import math
from collections.abc import Callable

NO_BREAK = "\N{NO-BREAK SPACE}"
MISSING = "–"


def percent(share: float, *, unit: bool = True) -> str:
    """0.000488 → `0.0488 %`, 0.9996 → `99.96 %`, 1 → `100 %`; near 100 it keeps the distance to 100 visible."""
    if math.isnan(share):
        return MISSING
    suffix = f"{NO_BREAK}%" if unit else ""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}{suffix}"
    if 99 < value < 100:
        digits = min(6, max(1, -math.floor(math.log10(100 - value) + 1e-9)))
        return f"{value:.{digits}f}{suffix}"
    if abs(value) >= 10:
        return f"{value:.1f}{suffix}"
    if abs(value) < 1e-4:
        return f"{value:.2e}{suffix}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}{suffix}"


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits without exponents between 1e-4 and 1e6; trailing zeros are kept off integers only."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-4 <= size < 1e6:
        return f"{value:.{digits - 1}e}"
    if float(value).is_integer() and size >= 1:
        return f"{value:,.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{places}f}"


def milliseconds(value: float) -> str:
    """3 significant digits with the unit: `41.2 ms`."""
    return MISSING if math.isnan(value) else f"{significant(value)}{NO_BREAK}ms"


def ratio(value: float) -> str:
    """`0.52×`, `3.1×`."""
    if math.isnan(value):
        return MISSING
    return f"{value:.2f}×" if value < 10 else f"{significant(value)}×"


def exact_percent(share: float) -> str:
    """A share that is known, not measured: 0.01 → `1 %`, 1/128 → `0.781 %`."""
    return MISSING if math.isnan(share) else f"{100 * share:.3g}{NO_BREAK}%"


def count(value: float) -> str:
    """Thousands separated: `1,024`; fractions keep three digits at most: `1.02`, `0.04`."""
    if math.isnan(value):
        return MISSING
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    written = significant(value)
    return written.rstrip("0").rstrip(".") if "." in written and "e" not in written else written


def plural(n: float, word: str) -> str:
    """`1 gate`, `1.02 gates`, `0 gates`."""
    return f"{count(n)} {word}" + ("" if count(n) == "1" else "s")


def interval(low: float, high: float, write: Callable[[float], str] = percent) -> str:
    """`[99.6 %, 100 %]`, or the missing sign."""
    if math.isnan(low) or math.isnan(high):
        return MISSING
    return f"[{write(low)}, {write(high)}]"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s`, `2 h 05 min`."""
    if math.isnan(seconds):
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{significant(seconds, 2)}{NO_BREAK}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min {rest:02d}{NO_BREAK}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NO_BREAK}h {minutes:02d}{NO_BREAK}min"
