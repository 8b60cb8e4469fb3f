"""The colours of the report's pages as two sets, light and dark, for pages with a switch and for figures on their own.

A figure inside a page takes its colours from the page (`var(--ink)`). On its own, as a file, it has to bring them:
`standalone` either resolves them for one theme, so that any program draws the file, or keeps both behind a media query.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from turnout.errors import DataError

AIR = 14
Theme = Literal["light", "dark", "auto"]
Colours = Mapping[str, str]

_STYLE = Path(__file__).parent / "templates" / "style.css"
_ROOT = re.compile(r":root \{([^}]*)\}")
_PAIR = re.compile(r"(--[\w-]+):\s*([^;}]+)")
_VAR = re.compile(r"var\((--[\w-]+)\)")
_LIGHT_DARK = re.compile(r"light-dark\(([^,()]+),\s*([^,()]+)\)")
# Rules of the stylesheet that a figure needs.
_FIGURE_RULE = re.compile(
    r"\.(plot|grid|axis|tick|axis-label|panel-title|row-label|line|whisker|leader|bar|ribbon|dot|direct|halo|reference|"
    r"reference-label|phase|phase-\w+|event|event-label|rail|query|query-label|q\d)\b"
)


@functools.cache
def stylesheet() -> str:
    """The report's stylesheet."""
    return _STYLE.read_text(encoding="utf-8")


@functools.cache
def page_colours() -> tuple[dict[str, str], dict[str, str]]:
    """Variables of the page for light and for dark, as the stylesheet has them."""
    blocks = [dict(_PAIR.findall(block)) for block in _ROOT.findall(stylesheet())]
    light, dark = blocks[0], blocks[1]
    return light, {**light, **dark}


@functools.cache
def figure_rules() -> str:
    """The rules of the stylesheet that apply inside a figure."""
    rules = re.findall(
        r"[^{}]+\{[^{}]*\}", stylesheet().partition("* { box-sizing")[2].partition("@media (max-width")[0]
    )
    kept = [rule.strip() for rule in rules if _FIGURE_RULE.match(rule.strip())]
    return "\n".join(kept)


def standalone(svg: str, *, theme: Theme, light: Colours | None = None, dark: Colours | None = None) -> str:
    """An svg element of a page as a file of its own.

    Args:
        svg: the element, as `picture` writes it.
        theme: "light" or "dark": every colour is written out; "auto": the reader's system decides (browsers only).
        light, dark: further variables, such as those of the groups of a comparison.
    Raises:
        DataError: the element was not drawn by `picture`.
    """
    day, night = page_colours()
    day, night = {**day, **(light or {})}, {**night, **(dark or {})}
    rules = figure_rules()
    if theme == "auto":
        svg, rules = _without_light_dark(svg, day, night), rules
        used = sorted(_used(svg + rules, day))
        rules += "\n:root{" + "".join(f"{key}:{day[key]};" for key in used) + "}"
        rules += "@media (prefers-color-scheme:dark){:root{" + "".join(f"{key}:{night[key]};" for key in used) + "}}"
        panel = "var(--panel)"
    else:
        colours = night if theme == "dark" else day
        svg, rules = (_resolved(text, colours, dark=theme == "dark") for text in (svg, rules))
        panel = colours["--panel"]
    head, _, rest = svg.partition(">")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    if size is None:
        raise DataError("the figure has no viewBox from 0 0; draw it with turnout.report.plot.picture")
    # On a page the figure has air around it; a file has to bring its own.
    width, height = float(size[1]) + 2 * AIR, float(size[2]) + 2 * AIR
    head = head.replace(size[0], f'viewBox="-{AIR} -{AIR} {width:g} {height:g}" width="{width:g}" height="{height:g}"')
    paper = f'<rect x="-{AIR}" y="-{AIR}" width="{width:g}" height="{height:g}" style="fill:{panel}"/>'
    return f"{head}><style>{rules}</style>{paper}{rest}\n"


def _resolved(text: str, colours: Colours, *, dark: bool) -> str:
    """Every variable and every pair of colours replaced by the colour of one theme."""
    text = _LIGHT_DARK.sub(lambda found: found[2 if dark else 1].strip(), text)
    for _ in range(3):
        text = _VAR.sub(lambda found: colours.get(found[1], "currentColor"), text)
    return text


def _without_light_dark(svg: str, day: dict[str, str], night: dict[str, str]) -> str:
    """Pairs of colours become variables, which a media query can switch; adds them to both sets."""

    def named(found: re.Match[str]) -> str:
        light, dark = found[1].strip(), found[2].strip()
        name = f"--pair-{light.strip('#')}-{dark.strip('#')}"
        day[name], night[name] = light, dark
        return f"var({name})"

    return _LIGHT_DARK.sub(named, svg)


def _used(text: str, colours: Colours) -> set[str]:
    found: set[str] = set()
    wanted = set(_VAR.findall(text))
    while wanted:
        name = wanted.pop()
        if name in colours and name not in found:
            found.add(name)
            wanted |= set(_VAR.findall(colours[name]))
    return found
