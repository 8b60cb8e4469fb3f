"""One stored sequence as a picture: its tokens as text, a rail a layer under each, filled where the gate is open.

The reader of a page (gates.js) shows the same with the keyboard and all sequences; this one can be exported.
"""

from __future__ import annotations

from turnout.report.figure import Cell, Data, Figure
from turnout.report.gates import GateSequence, GateSnapshot
from turnout.report.groups import provenance
from turnout.report.numbers import percent, plural
from turnout.report.plot import both_sizes, picture
from turnout.report.run import Run
from turnout.report.svg import tag, text

MOST_TOKENS = 1024
# Width of a monospaced character of 12 pixels.
_CHARACTER = 7.3
_RAIL, _TEXT = 4.0, 19.0
_SHOWN = str.maketrans({"\n": "↵", "\t": "→", "\r": "↵"})


def sequence_figure(run: Run, number: int = 0) -> Figure | None:
    """Sequence `number` of the run's map; None when it stores none.

    Args:
        number: from 0; past the last one it is the last one.
    """
    shot = run.gates
    if shot is None or not shot.sequences:
        return None
    number = min(number, len(shot.sequences) - 1)
    item = shot.sequences[number]
    wide, narrow = both_sizes(lambda width: _draw(shot, item, width))
    rows: list[list[Cell]] = [
        [i, token, " ".join(str(layer) for layer in _open(shot, item, i)), i in item.at]
        for i, token in enumerate(item.tokens)
    ]
    opened = sum(bool(_open(shot, item, i)) for i in range(len(item.tokens)))
    cut = f" The first {MOST_TOKENS:,} are drawn." if len(item.tokens) > MOST_TOKENS else ""
    return Figure(
        title=f"Sequence {number + 1}: who took attention",
        wide=wide,
        narrow=narrow,
        caption=f"{plural(opened, 'token')} of {len(item.tokens):,} took attention "
        f"({percent(opened / len(item.tokens))}). A filled rail: the gate of that layer is open; layer "
        f"{shot.index[0]} is the lowest. A frame: a query.{cut} Step {shot.step:,}. "
        f"{provenance([run], sample='one sequence')}.",
        data=Data(name="sequence", columns=["position", "token", "open_layers", "is_query"], rows=rows),
    )


def _open(shot: GateSnapshot, item: GateSequence, i: int) -> list[int]:
    return [layer for layer, row in zip(shot.index, item.taken, strict=True) if row[i]]


def _draw(shot: GateSnapshot, item: GateSequence, width: float) -> str:
    tokens = [token.translate(_SHOWN) for token in item.tokens[:MOST_TOKENS]]
    flowing = all(len(token) == 1 for token in tokens)
    air = 0.0 if flowing else 8.0
    pitch = _TEXT + shot.layers * _RAIL + 8
    dense = len(item.at) > len(item.tokens) / 4
    queries = set() if dense else set(item.at)
    x, y = 4.0, 4.0
    marks, legend_x = [], 4.0
    for i, token in enumerate(tokens):
        # A space as wide as a letter, so that it can have rails.
        wide = max(1, len(token)) * _CHARACTER + air
        if x + wide > width - 4:
            x, y = 4.0, y + pitch
        opened = [row[i] for row in item.taken]
        if any(opened):
            marks.append(tag("rect", x=x, y=y, width=wide, height=_TEXT - 3, style="fill:var(--tint)"))
        if i in queries:
            box = {"x": x, "y": y, "width": wide, "height": _TEXT + shot.layers * _RAIL}
            marks.append(tag("rect", style="fill:none;stroke:var(--ink)", **box))
        ink = "fill:var(--ink);font-weight:700" if any(opened) else "fill:var(--soft)"
        style = f"{ink};font-family:monospace;font-size:12px"
        marks.append(text(token, x + wide / 2, y + 12, text_anchor="middle", style=style))
        for layer, is_open in enumerate(opened):
            place = {"x": x, "y": y + _TEXT + (shot.layers - 1 - layer) * _RAIL, "width": wide}
            if is_open:
                marks.append(tag("rect", height=_RAIL - 1, style=f"fill:var(--l{layer})", **place))
        x += wide
    y += pitch + 6
    for layer, name in enumerate(shot.index):
        if legend_x + 78 > width:
            legend_x, y = 4.0, y + 18
        marks.append(tag("rect", x=legend_x, y=y, width=14, height=10, style=f"fill:var(--l{layer})"))
        marks.append(text(f"layer {name}", legend_x + 20, y + 9, class_="tick"))
        legend_x += 82
    words = f"The tokens of one sequence; {sum(map(any, zip(*item.taken, strict=True)))} of them take attention."
    return picture(width, y + 20, marks, label=f"{words} The table lists them.")
