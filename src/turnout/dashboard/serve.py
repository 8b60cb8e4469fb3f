"""Starting the server: the port is taken before anything is promised, and who may connect is said."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from turnout.dashboard.app import LOOPBACK, create_app
from turnout.errors import ConfigError, TurnoutError

SHORTEST_TOKEN = 16


def serve(
    runs: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8350,
    token: str = "",
    results: Path | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C.

    Args:
        runs: folder of runs.
        host: address to listen on; anything but loopback needs a token.
        port: 0 takes a free one.
        token: what readers must show; see `create_app`.
        results: folder of committed results, None = those of the library.
        ready: gets the address once the port is open.
    Raises:
        ConfigError: another host without a token, or a token that can be guessed.
        TurnoutError: the port is in use, or the address is not one of this machine.
    """
    import uvicorn

    local = host in LOOPBACK
    if not local and not token:
        raise ConfigError(
            f"--host {host} lets other machines read your runs; add --token SECRET ({SHORTEST_TOKEN} characters or "
            "more), or leave out --host"
        )
    if token and len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"--token has {len(token)} characters; expected at least {SHORTEST_TOKEN}, so that nobody guesses it"
        )
    listening = open_port(host, port)
    app = create_app(runs, results=results, token=token, hosts=LOOPBACK if local else frozenset({"*"}))
    # A first look at a thousand runs is taken while the reader still opens the page.
    threading.Thread(target=app.state.site.listing.lines, daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else ""))
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        TurnoutError: in use (names a free port), not allowed, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise TurnoutError(
                f"port {port} is in use, perhaps by another dashboard; look at http://{host}:{port}/ first, or take "
                f"another port with --port {port + 1} (--port 0 takes a free one)"
            ) from error
        raise TurnoutError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from error
    return listening
