"""A dashboard on a free port in a thread, raw requests to it, and runs that are written while it is looked at."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from turnout.dashboard.app import LOOPBACK, create_app
from turnout.dashboard.serve import open_port


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass(frozen=True)
class Served:
    """A running dashboard."""

    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Send a request exactly as written: no client tidies the path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, body)
        finally:
            connection.close()


@contextmanager
def serving(
    runs: Path, *, results: Path | None = None, token: str = "", hosts: frozenset[str] = LOOPBACK
) -> Iterator[Served]:
    listening = open_port("127.0.0.1", 0)
    app = create_app(runs, results=results, token=token, hosts=hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield Served(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def train_line(step: int, **changed: object) -> str:
    """One training line as the loop writes it."""
    line = {
        "kind": "train", "step": step, "phase": "explore", "lambda": 0.0, "loss": 2.0 + 1 / (step + 1),
        "task_loss": 2.0, "penalty": 0.0, "accuracy": 0.25, "usage": 0.5, "decided": 0.5, "usage_layers": [0.75, 0.25],
        "most_rows": 9, "gates_per_seq": 128.0, "skipping": False, "capacity": None, "length": 128, "ms": 12.5,
        "tokens_per_s": 1e5, "lr": 1e-3,
    }  # fmt: skip
    return json.dumps(line | changed) + "\n"


def eval_line(step: int, **changed: object) -> str:
    """One evaluation as the loop writes it."""
    line = {
        "kind": "eval", "step": step, "phase": "explore", "length": 128, "loss": 2.0, "accuracy": 0.25, "n": 100,
        "correct": 25, "usage": 0.5, "usage_layers": [0.75, 0.25], "gates_per_seq": 128.0, "most_rows": 9, "slices": {},
    }  # fmt: skip
    return json.dumps(line | changed) + "\n"


def event_line(step: int, detail: str) -> str:
    return json.dumps({"kind": "event", "step": step, "event": "phase", "detail": detail}) + "\n"
