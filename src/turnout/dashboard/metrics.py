"""Metrics of any size in constant time: small files whole, large ones by byte offset.

A large metrics.jsonl is never read through before something is shown. Training lines are sampled on a grid of byte
offsets whose stride is a power of two (so a growing file keeps its samples); evaluations and events, which are rare,
are searched in slices of at most `SLICE_SECONDS` a call, and `searched` says how much of the file that was. A line that
is half written, cut off or damaged is left out and counted.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from turnout.report.run import Line

WHOLE_BYTES = 2 * 2**20
SAMPLES = 1024
SLICE_SECONDS = 0.2
CHUNK = 8 * 2**20
TAIL = 64 * 2**10
WINDOW = 8 * 2**10
LONGEST_LINE = 2**20
MOST_RARE = 4000
_RARE = (b'"kind": "e', b'"kind":"e')


@dataclass(kw_only=True, slots=True)
class Metrics:
    """What is known of a metrics file.

    Attributes:
        lines: parsed lines in file order: all of them, or a sample of the training lines and every rare one found.
        size: bytes of the file.
        whole: were all lines read?
        searched: share of the file in which evaluations and events were looked for.
        damaged: lines that are no JSON objects.
        cut_off: does the file end within a line (being written, or killed)?
    """

    lines: list[Line]
    size: int
    whole: bool
    searched: float
    damaged: int
    cut_off: bool


@dataclass(slots=True)
class MetricsIndex:
    """Incremental reader of one metrics file; `read` may be called from several threads."""

    position: int = 0
    inode: int = -1
    damaged: int = 0
    before: bytes = b""
    lines: list[Line] = field(default_factory=list)
    rare: list[tuple[int, Line]] = field(default_factory=list)
    samples: dict[int, tuple[int, Line]] = field(default_factory=dict)
    whole: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, stream: BinaryIO) -> Metrics:
        """Bring the index up to the file as it is now.

        Cost: O(new bytes) for small files; for large ones O(samples) reads and at most `SLICE_SECONDS` of searching.
        """
        with self.lock:
            descriptor = stream.fileno()
            found = os.fstat(descriptor)
            size = found.st_size
            if found.st_ino != self.inode or size < self.position or self._rewritten(descriptor):
                self._reset(found.st_ino)
            if self.whole and size > WHOLE_BYTES:
                self._reset(found.st_ino)
                self.whole = False
            tail = os.pread(descriptor, 1, size - 1) if size else b"\n"
            if self.whole:
                self._read_on(descriptor, size)
                lines, searched = list(self.lines), 1.0
            else:
                self._search_on(descriptor, size)
                lines = self._sampled(descriptor, size)
                searched = self.position / size if size else 1.0
            return Metrics(
                lines=lines, size=size, whole=self.whole, searched=searched, damaged=self.damaged, cut_off=tail != b"\n"
            )

    def _reset(self, inode: int) -> None:
        self.position, self.inode, self.damaged, self.before, self.whole = 0, inode, 0, b"", True
        self.lines, self.rare, self.samples = [], [], {}

    def _rewritten(self, descriptor: int) -> bool:
        """Was the file cut and written again below the position (a resumed run)?"""
        return os.pread(descriptor, len(self.before), self.position - len(self.before)) != self.before

    def _advance(self, data: bytes) -> None:
        self.position += len(data)
        self.before = (self.before + data[-64:])[-64:]

    def _read_on(self, descriptor: int, size: int) -> None:
        data = os.pread(descriptor, size - self.position, self.position)
        data = data[: data.rfind(b"\n") + 1]
        for raw in data.split(b"\n"):
            line = parse(raw)
            if line is not None:
                self.lines.append(line)
            elif raw.strip():
                self.damaged += 1
        self._advance(data)

    def _search_on(self, descriptor: int, size: int) -> None:
        """Look for evaluations and events from where the last call stopped."""
        until = time.perf_counter() + SLICE_SECONDS
        while self.position < size and time.perf_counter() < until:
            data = os.pread(descriptor, CHUNK, self.position)
            end = data.rfind(b"\n") + 1
            if not end:
                # Eight megabytes without an end of line: no run wrote that; step over it.
                if len(data) < CHUNK:
                    return
                end = len(data)
            data = data[:end]
            self._collect(data)
            self._advance(data)

    def _collect(self, data: bytes) -> None:
        needle = _RARE[0] if _RARE[0] in data or _RARE[1] not in data else _RARE[1]
        at = data.find(needle)
        while at >= 0:
            start = data.rfind(b"\n", 0, at) + 1
            end = data.find(b"\n", at)
            line = parse(data[start:end]) if end - start <= LONGEST_LINE else None
            if line is None:
                self.damaged += 1
            else:
                self.rare.append((self.position + start, line))
            at = data.find(needle, end)
        if len(self.rare) > MOST_RARE:
            # Keep the events and every other evaluation; the curves need no more.
            evals = [item for item in self.rare if item[1].get("kind") == "eval"]
            events = [item for item in self.rare if item[1].get("kind") == "event"]
            self.rare = sorted(evals[1::2] + events[: MOST_RARE // 2], key=lambda item: item[0])

    def _sampled(self, descriptor: int, size: int) -> list[Line]:
        """Training lines at multiples of the stride, the rare lines, and the last lines of the file, in order."""
        stride = 1 << max(0, (size // SAMPLES).bit_length())
        self.samples = {at: kept for at, kept in self.samples.items() if at % stride == 0 and at < size}
        for at in range(0, size, stride):
            if at not in self.samples:
                line = _line_after(descriptor, at)
                if line is not None:
                    self.samples[at] = line
        found = dict(self.rare)
        found |= {start: line for start, line in self.samples.values() if line.get("kind") == "train"}
        found |= _last_lines(descriptor, size)
        return [found[start] for start in sorted(found)]


def parse(raw: bytes) -> Line | None:
    """One metrics line, None when it is no JSON object."""
    try:
        line: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def last_of(stream: BinaryIO, kinds: tuple[str, ...]) -> dict[str, Line]:
    """The last complete line of each kind, for a table that shows where a run is; looks at the end of the file only."""
    descriptor = stream.fileno()
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, min(size, TAIL), max(0, size - TAIL))
    found: dict[str, Line] = {}
    end = data.rfind(b"\n")
    while end > 0 and len(found) < len(kinds):
        start = data.rfind(b"\n", 0, end) + 1
        line = parse(data[start:end])
        if line is not None and line.get("kind") in kinds:
            found.setdefault(line["kind"], line)
        end = start - 1
    return found


def _last_lines(descriptor: int, size: int) -> dict[int, Line]:
    start = max(0, size - TAIL)
    data = os.pread(descriptor, size - start, start)
    at = 0 if start == 0 else data.find(b"\n") + 1
    found: dict[int, Line] = {}
    while (end := data.find(b"\n", at)) >= 0:
        line = parse(data[at:end])
        if line is not None:
            found[start + at] = line
        at = end + 1
    return found


def _line_after(descriptor: int, at: int) -> tuple[int, Line] | None:
    """The first whole line that begins at or after a byte."""
    start = at - 1 if at else 0
    data = os.pread(descriptor, WINDOW, start)
    first = data.find(b"\n") + 1 if at else 0
    if at and not first:
        return None
    end = data.find(b"\n", first)
    if end < 0:
        data += os.pread(descriptor, LONGEST_LINE, start + len(data))
        end = data.find(b"\n", first)
    line = parse(data[first:end]) if end >= 0 else None
    return None if line is None else (start + first, line)
