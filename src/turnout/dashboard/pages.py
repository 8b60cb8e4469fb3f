"""From a view to a page: templates, colours, and the one style element that the page's policy allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from turnout.dashboard.policy import colour_sheet, headers, hoist
from turnout.dashboard.views import View
from turnout.report import theme
from turnout.report.numbers import count, percent, ratio, significant
from turnout.report.template import engine
from turnout.report.units import written_bytes

_TEMPLATES = Path(__file__).parent / "templates"
MENU = (
    ("/", "Runs"),
    ("/pareto", "Usage vs quality"),
    ("/kernels", "Kernels"),
    ("/inference", "Inference"),
    ("/claims", "Claims"),
)


class Pages:
    """Renders views."""

    def __init__(self) -> None:
        self._templates = engine(_TEMPLATES)
        self._templates.filters |= {
            "percent": _known(percent), "count": _known(count), "significant": _known(significant),
            "ratio": _known(ratio),
            "path": lambda name: quote(str(name), safe=""),
            "bytes": written_bytes,
        }  # fmt: skip
        self.light, self.dark = theme.page_colours()

    def response(self, view: View, request: Request) -> Response:
        """The page of a view."""
        query = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
        text = self._templates.get_template(view.template).render(
            view=view,
            figures=view.figures,
            tables=view.tables,
            query=dict(query),
            here=quote(request.scope["path"], safe="/"),
            search=f"?{urlencode(query)}" if query else "",
            menu=MENU,
            link=lambda **changed: _link(query, changed),
            **view.values,
        )
        body, rules = hoist(text)
        sheet = colour_sheet({**self.light, **view.light}, {**self.dark, **view.dark}) + rules
        body = body.replace("<style></style>", f"<style>{sheet}</style>", 1)
        # A name of a folder may hold bytes that are no text.
        raw = body.encode("utf-8", "replace")
        sent = {"cache-control": "no-store", **headers(sheet=sheet)}
        return Response(raw, status_code=view.status, media_type="text/html; charset=utf-8", headers=sent)


def _link(query: list[tuple[str, str]], changed: dict[str, Any]) -> str:
    """This page's query with some values changed; None leaves one out."""
    kept = [(key, value) for key, value in query if key not in changed]
    kept += [(key, str(value)) for key, value in changed.items() if value is not None]
    return f"?{urlencode(kept)}" if kept else "?"


def _known(write: Any) -> Any:
    """A number's words; a dash for what is no number."""
    return lambda value: write(float(value)) if isinstance(value, int | float) else "–" if value is None else str(value)
