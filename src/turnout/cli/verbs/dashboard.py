"""`turnout dashboard`: look at runs in a browser while they train."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result
from turnout.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Serve a live page over run folders, to this machine alone unless told otherwise. Ctrl-C stops it.

    Args:
        runs: folder of all runs.
        port: to listen on; 0 takes a free one.
        host: to listen on; another than 127.0.0.1 needs a token.
        token: what a reader must bring, 16 characters or more.
        results: folder of committed results; without it those that turnout claims prints.
    """

    positional: ClassVar[tuple[str, ...]] = ("runs",)
    runs: str = "runs"
    port: int = 8350
    host: str = "127.0.0.1"
    token: str = ""
    results: str | None = None


def run(call: Call[Options]) -> Result:
    """Serve until Ctrl-C."""
    options = call.options
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port={options.port}; expected 0 to 65535")
    try:
        from turnout.dashboard import serve
    except ImportError as error:
        words = f"the dashboard needs {error.name}; install it with: pip install 'turnout[dashboard]'"
        raise UnsupportedError(words) from error
    runs, results = Path(options.runs), Path(options.results) if options.results else None
    for folder, words in ((runs, "folder of all runs"), (results, "folder of committed results")):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give the {words}")
    if results is not None and not results.exists():
        raise ConfigError(f"there is no folder {results}; leave out --results to see those of the library")
    if not runs.exists():
        # No error: a dashboard may be opened before the first run.
        print(f"there is no folder {runs} yet; its runs are shown as soon as it is there", file=sys.stderr, flush=True)
    serve(runs, host=options.host, port=options.port, token=options.token, results=results, ready=_announce)
    return Result({"stopped": True}, [])


def _announce(address: str) -> None:
    print(f"dashboard  {address}  (Ctrl-C stops it)", file=sys.stderr, flush=True)
