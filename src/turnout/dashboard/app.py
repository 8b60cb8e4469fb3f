"""The web application: addresses, checks before anything is read, and answers that say when nothing changed.

Every answer is a page, a figure (SVG) or a table (CSV), made from files and nothing else; the server only reads. A page
asks for itself again every second with the mark of what it shows (ETag), and gets "304, nothing new" without being
rendered when no file behind it changed. That is all there is to being live: it survives sleep, restarts and proxies.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from turnout import __version__
from turnout.dashboard import claims, views
from turnout.dashboard.folder import NotThere
from turnout.dashboard.pages import Pages
from turnout.dashboard.policy import COOKIE, headers, host_allowed, token_allowed
from turnout.dashboard.views import Site, View
from turnout.errors import TurnoutError
from turnout.report.theme import standalone

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_STATIC = Path(__file__).parent / "static"
_REPORT = Path(__file__).parents[1] / "report" / "templates"
# Changes with every start and so with every upgrade: a mark of an older server never matches.
_STARTED = f"{__version__} {time.time_ns()}"

Show = Callable[[Request], View]


class Gate:
    """Refuses requests under another host name, without the token, or with a method that is not for reading."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        refused = self._refusal(request)
        if refused is None and self.token and request.query_params.get("token"):
            # The token leaves the address bar, and links that are copied do not carry it.
            kept = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
            clean = "/" + quote(scope["path"], safe="/").lstrip("/")
            refused = RedirectResponse(f"{clean}?{urlencode(kept)}" if kept else clean, status_code=303)
            refused.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        if refused is None:
            return await self.app(scope, receive, _with_headers(send))
        await refused(scope, receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        if not host_allowed(request.headers.get("host", ""), self.hosts):
            return PlainTextResponse("this server does not answer to that host name", status_code=421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("the dashboard only reads: GET or HEAD", status_code=405)
        allowed = token_allowed(
            self.token,
            cookie=request.cookies.get(COOKIE, ""),
            query=request.query_params.get("token", ""),
            bearer=request.headers.get("authorization", ""),
        )
        if allowed:
            return None
        words = "this dashboard asks for a token: open it as http://HOST:PORT/?token=TOKEN, as its start printed it"
        return PlainTextResponse(words, status_code=401)


def _with_headers(send: Send) -> Send:
    """Every answer carries the security headers, unless it brings its own."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            have = {name.lower() for name, _ in message["headers"]}
            extra = [(k.encode(), v.encode()) for k, v in headers().items() if k.encode() not in have]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return guarded


def create_app(
    runs: Path, *, results: Path | None = None, token: str = "", hosts: frozenset[str] = LOOPBACK
) -> Starlette:
    """The application over a folder of runs.

    Args:
        runs: the folder; may be empty or missing.
        results: committed results; None = those that ship with the library.
        token: asked of every request; "" = none, which only a loopback server may do.
        hosts: names under which requests are answered; "*" allows every name.
    """
    site = Site(runs, results)
    pages = Pages()

    def page(show: Callable[..., View], *names: str) -> Callable[[Request], Awaitable[Response]]:
        def view(request: Request) -> View:
            return show(site, *(request.path_params[name] for name in names), dict(request.query_params))

        return _endpoint(site, pages, view)

    def compare(request: Request) -> View:
        return views.compare_view(site, request.query_params.getlist("run"), dict(request.query_params))

    shown: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
        ("/", page(views.runs_view)),
        ("/compare", _endpoint(site, pages, compare)),
        ("/pareto", page(views.pareto_view)),
        ("/kernels", page(views.kernels_view)),
        ("/inference", page(views.inference_view)),
        ("/claims", page(claims.claims_view)),
        ("/claims/{claim}", page(claims.claim_view, "claim")),
        ("/claims/{claim}/runs/{record}", page(claims.record_view, "claim", "record")),
    ]
    shown += [("/run/{run}" + (f"/{tab}" if tab else ""), page(show, "run")) for tab, show in views.RUN_TABS.items()]
    # Exports before pages, so that no record is taken for one.
    routes: list[Any] = [Route(f"{path.rstrip('/')}/export/{{file}}", endpoint) for path, endpoint in shown]
    routes += [Route(path, endpoint) for path, endpoint in shown]
    # The look of the report and its reader of sequences are those of the dashboard.
    routes += [Route(f"/static/{name}", _file(_REPORT / name)) for name in ("style.css", "gates.js")]
    routes.append(Mount("/static", StaticFiles(directory=_STATIC)))
    handlers: dict[Any, Any] = {404: _missing(pages), 500: _failed(pages)}
    middleware = [
        Middleware(Gate, token=token, hosts=hosts),
        Middleware(GZipMiddleware, minimum_size=2000, compresslevel=4),
    ]
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)
    app.state.site = site
    return app


def _endpoint(site: Site, pages: Pages, show: Show) -> Callable[[Request], Awaitable[Response]]:
    def answer(request: Request) -> Response:
        mark = _mark(site, request)
        if mark and request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers={"etag": mark, **headers()})
        try:
            view = show(request)
        except NotThere as error:
            view = View(template="missing.html.j2", title="Not there", values={"words": str(error)}, status=404)
        except (TurnoutError, OSError) as error:
            view = View(template="missing.html.j2", title="Cannot be shown", values={"words": str(error)}, status=500)
        if "file" in request.path_params:
            return _export(view, request)
        response = pages.response(view, request)
        if mark and view.status == 200 and _complete(view):
            response.headers["etag"] = mark
        return response

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(answer, request)

    return endpoint


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return FileResponse(path, headers={"cache-control": "no-cache"})

    return endpoint


def _complete(view: View) -> bool:
    """Is there nothing left to read? While a large file is searched, the next request has news without a new file."""
    loaded = view.values.get("loaded")
    return loaded is None or loaded.searched >= 1


def _mark(site: Site, request: Request) -> str:
    """What the page is made of, as an ETag: address, files and their stamps."""
    run = request.path_params.get("run")
    seen: Any
    if run is not None:
        files = ("manifest.json", "metrics.jsonl", "summary.json", "savings.json", "gates/final.json")
        stamps = [site.folder.stamp(run, file) for file in files]
        seen = (stamps, site.folder.gate_steps(run)[-1:], (line := site.listing.line(run)) and line.state)
    elif request.url.path.startswith(("/claims", "/kernels", "/inference")):
        seen = [
            (path.name, path.stat().st_mtime_ns)
            for folder in ("claims", "bench")
            for path in sorted((site.results / folder).glob("*"))
            if path.exists()
        ]
    else:
        seen = [(line.name, line.state, line.modified) for line in site.listing.lines()]
    text = repr((_STARTED, request.url.path, request.url.query, seen))
    return f'"{hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()}"'


def _export(view: View, request: Request) -> Response:
    """A figure or a table of a page as a file."""
    name, _, kind = request.path_params["file"].rpartition(".")
    if view.status != 200:
        return PlainTextResponse(view.values["words"], status_code=view.status, headers=headers())
    named = {"content-disposition": f'inline; filename="{name}.{kind}"', "cache-control": "no-store", **headers()}
    for figure in view.figures:
        if figure.data.filename == f"{name}.csv" and kind == "svg":
            theme = request.query_params.get("theme", "light")
            chosen: Any = theme if theme in ("light", "dark", "auto") else "light"
            # A file may hold its own style; it runs nothing.
            named["content-security-policy"] = "default-src 'none'; style-src 'unsafe-inline'"
            svg = standalone(figure.wide, theme=chosen, light=view.light, dark=view.dark)
            return Response(svg, media_type="image/svg+xml", headers=named)
    for table in [*(figure.data for figure in view.figures), *view.tables]:
        if table.filename == f"{name}.csv" and kind == "csv":
            return Response(table.csv(), media_type="text/csv; charset=utf-8", headers=named)
    there = [f.data.filename[:-4] for f in view.figures] + [t.filename[:-4] for t in view.tables]
    words = f"this page has no {name}.{kind}; it has {', '.join(sorted(set(there))) or 'nothing to export'}"
    return PlainTextResponse(words, status_code=404, headers=headers())


def _missing(pages: Pages) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        words = f"there is no page {request.url.path!r}; the dashboard's pages are in the menu above"
        if isinstance(error, HTTPException) and error.status_code != 404:
            words = error.detail
        return pages.response(
            View(template="missing.html.j2", title="Not there", values={"words": words}, status=404), request
        )

    return handler


def _failed(pages: Pages) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        words = (
            f"this page failed ({type(error).__name__}: {error}); the others still work. The server's log says where."
        )
        return pages.response(
            View(template="missing.html.j2", title="Failed", values={"words": words}, status=500), request
        )

    return handler
