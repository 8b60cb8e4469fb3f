"""The figure of directional routing by text: perplexity of every arm against the baseline, by domain and by length.

A text is "all", a domain, or a length of windows; every arm has its loss with the whole window in sight
(teacher-forced) and with the prefix alone (prefix-honest).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turnout.claims.store import summaries
from turnout.report.figure import Cell, Data, Figure
from turnout.report.plot import both_sizes, picture
from turnout.report.svg import linear_scale, tag, text, tick_label

COLUMNS = ["size", "arm", "text", "seeds", "teacher_forced", "honest", "teacher_forced_change", "honest_change"]
SIZES = {"cpu": "0.2M parameters, bytes", "gpu": "11M parameters, bytes", "433m": "433M parameters, BPE"}
PUBLISHED = "sequence"
LEFT, PITCH, TOP = 132.0, 17.0, 56.0


def by_text(root: Path) -> Figure | None:
    """Perplexity of all arms against the baseline's honest one, by domain and by length of the window."""
    rows = [row for size in SIZES for row in _rows(size, root)]
    if not rows:
        return None
    wide, narrow = both_sizes(lambda width: _draw(rows, width))
    return Figure(
        title="Directional routing by text",
        wide=wide,
        narrow=narrow,
        caption="Perplexity against the baseline, by domain and by length of the windows, means over seeds. Rings: the "
        "published router with the whole window in sight. Full red: the same model with each token's prefix alone. "
        "Blue: the arms that are causal, for which both are one number.",
        data=Data(name="leak-by-text", columns=COLUMNS, rows=rows),
    )


def _rows(size: str, root: Path) -> Iterator[list[Cell]]:
    """A row an arm and text, with the seeds that have it; the change is against the baseline's same seeds."""
    suffix = f", {size}"
    arms = {
        name.removesuffix(suffix): {record["seed"]: texts for record in records if (texts := _texts(record))}
        for name, records in summaries("DR1", root).items() if name.endswith(suffix)
    }  # fmt: skip
    base = arms.get("baseline", {})
    for arm, records in arms.items():
        for name in dict.fromkeys(name for texts in records.values() for name in texts):
            own = {seed: texts[name] for seed, texts in records.items() if name in texts}
            means = [math.fsum(pair[i] for pair in own.values()) / len(own) for i in (0, 1)]
            pairs = [(pair, base[seed][name][1]) for seed, pair in own.items() if name in base.get(seed, {})]
            changes: list[Cell] = [None, None]
            if pairs:
                changes = [math.expm1(math.fsum(p[i] - b for p, b in pairs) / len(pairs)) for i in (0, 1)]
            yield [size, arm, name, len(own), *means, *changes]


def _texts(record: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Text -> (teacher-forced, honest) loss in nats of one record."""
    study = record.get("study", {})
    honest = study.get("honest")
    if not honest:
        return {}

    def pair(row: dict[str, Any]) -> tuple[float, float]:
        return float(row["teacher_forced"]), float(row["honest"])

    found = {"all": pair(honest)} | {row["domain"]: pair(row) for row in honest["by_domain"]}
    return found | {f"windows of {row['length']}": pair(row) for row in study.get("lengths", ())}


def _draw(rows: list[list[Cell]], width: float) -> str:
    shown = [row for row in rows if row[1] != "baseline" and row[6] is not None]
    changes = [float(value or 0) for row in shown for value in row[6:8]]
    x = linear_scale([*changes, 0.0], LEFT, width - 16, floor=None)
    marks = [text("perplexity against the baseline's honest one", 4, 16, class_="panel-title")]
    y = TOP
    for size, title in SIZES.items():
        texts = dict.fromkeys(str(row[2]) for row in shown if row[0] == size)
        if texts:
            marks.append(text(title, LEFT, y, class_="tick"))
            y += PITCH
        for name in texts:
            marks.append(text(name, LEFT - 10, y + 3.5, class_="row-label", text_anchor="end"))
            for row in sorted(shown, key=lambda row: row[1] == PUBLISHED):
                if (row[0], row[2]) == (size, name):
                    marks += _dots(str(row[1]), [x(float(value or 0)) for value in row[6:8]], y)
            y += PITCH
        y += 6 if texts else 0
    grid = []
    for value in x.ticks(max(2, int((width - LEFT) // 80))):
        kind = "axis" if value == 0 else "grid"
        grid.append(tag("line", class_=kind, x1=x(value), x2=x(value), y1=TOP - 14, y2=y - PITCH))
        grid.append(text(tick_label(value, "%"), x(value), TOP - 20, class_="tick", text_anchor="middle"))
    told = "; ".join(f"{row[0]} {row[1]} {row[2]}: {100 * float(row[7] or 0):+.1f} %" for row in shown)
    return picture(width, y, [*grid, *marks], label=f"Honest perplexity against the baseline. {told}.")


def _dots(arm: str, places: list[float], y: float) -> list[str]:
    forced, honest = places
    if arm != PUBLISHED:
        return [tag("circle", cx=honest, cy=y, r=3.0, style="fill:var(--accent);opacity:.55")]
    ring = tag("circle", cx=forced, cy=y, r=3.6, style="fill:none;stroke:var(--bad);stroke-width:1.6")
    return [ring, tag("circle", cx=honest, cy=y, r=4.0, style="fill:var(--bad)")]
