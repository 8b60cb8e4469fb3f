"""The template engine of every page, and how a page and its figures' data are written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turnout.errors import UnsupportedError
from turnout.report.figure import Figure
from turnout.train.atomic import write_error, write_file

TEMPLATES = Path(__file__).parent / "templates"


def engine(folder: Path = TEMPLATES) -> Any:
    """A jinja2 environment with escaping on, undefined names an error, and the filters `coded` and `script_json`.

    Args:
        folder: of the templates; the macros of the reports can be imported in it too.

    Raises:
        UnsupportedError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise UnsupportedError(
            "the report needs jinja2, which is not installed; install it with: pip install 'turnout[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "coded": lambda words: Markup(re.sub(r"`(.*?)`", r"<code>\1</code>", str(Markup.escape(words)))),
        "script_json": lambda value: Markup(script_json(value)),
    }
    return environment


def script_json(value: Any) -> str:
    """JSON that cannot end its script element, whatever the tokens hold."""
    raw = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "&<>\u2028\u2029":
        raw = raw.replace(character, f"\\u{ord(character):04x}")
    return raw


def write_page(out: Path, template: str, figures: Sequence[Figure], **values: Any) -> Path:
    """Render a page of figures to `out`, and their data as CSV into the folder beside it."""
    folder = out.parent / f"{out.stem}_data"
    page = engine().get_template(template).render(figures=figures, data_folder=folder.name, style=style(), **values)
    make_folder(folder)
    for figure in figures:
        figure.data.write(folder)
    write_file(out, page.encode("utf-8"))
    return out


def style() -> str:
    """The style sheet of a self-contained page."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder; DataError that says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder) from error
