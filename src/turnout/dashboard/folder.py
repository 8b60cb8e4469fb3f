"""The runs folder seen from a browser: names of runs, and files of runs that really lie inside the folder.

Everything that the dashboard reads of a run goes through `RunsFolder`: a name is a direct child of the folder, and a
file that a symbolic link leads outside, a pipe or a device is refused before it is opened.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from turnout.errors import DataError, nearest

MARKS = ("manifest.json", "metrics.jsonl", "summary.json")
LARGEST_JSON = 64 * 2**20


_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class NotThere(DataError):
    """The run or the file does not exist (any more)."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identity of a file's content: it changes when the file does."""

    size: int
    modified_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One run folder and the stamps of its files; None where a file is missing or refused."""

    name: str
    manifest: Stamp | None
    metrics: Stamp | None
    summary: Stamp | None

    @property
    def modified_ns(self) -> int:
        """When the run last wrote one of them."""
        return max((mark.modified_ns for mark in (self.manifest, self.metrics, self.summary) if mark), default=0)


class RunsFolder:
    """Read-only view of a folder of runs.

    Args:
        root: the folder; it may be missing or empty, which is no error until a run is asked for.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()

    def entries(self) -> list[Entry]:
        """Every run, by name. Links that lead outside, files and folders without a run in them are left out."""
        found = []
        try:
            names = os.listdir(self.root)
        except OSError:
            return []
        for name in sorted(names):
            # `is_dir` is False for what cannot be looked at, such as a link in a circle.
            path = self.root / name
            if not path.is_dir() or (path.is_symlink() and not self._is_inside(path)):
                continue
            stamps = [self.stamp(name, mark) for mark in MARKS]
            if any(stamps):
                found.append(Entry(name, *stamps))
        return found

    def foreign(self) -> int:
        """How many things in the folder are no runs."""
        try:
            return len(os.listdir(self.root)) - len(self.entries())
        except OSError:
            return 0

    def path(self, name: str) -> Path:
        """The folder of a run.

        Raises:
            NotThere: no such run (names the nearest one), it lies outside the runs folder, or it holds no run.
        """
        path = self.root / name
        if not _is_name(name) or not path.is_dir():
            beside = [entry.name for entry in self.entries()]
            raise NotThere(f"there is no run {name!r} in {self.root}{nearest(name, beside)}")
        if not self._is_inside(path):
            raise NotThere(f"{name!r} is a link that leads outside {self.root}; the dashboard reads nothing there")
        if not any(self.stamp(name, mark) for mark in MARKS):
            raise NotThere(f"{path} is no run: it has none of {', '.join(MARKS)}")
        return path

    def stamp(self, name: str, file: str) -> Stamp | None:
        """Stamp of a file of a run, None when there is none that may be read."""
        path = self.root / name / file
        try:
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                if not self._is_inside(path):
                    return None
                found = path.stat()
        except (OSError, ValueError):
            return None
        return Stamp(found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None

    @contextmanager
    def open(self, name: str, file: str) -> Iterator[BinaryIO]:
        """Open a regular file of a run for reading.

        Raises:
            NotThere: missing, no regular file, or outside the runs folder.
        """
        try:
            descriptor = self._descriptor(name, file)
        except OSError as error:
            # Says first when the run itself is not there.
            self.path(name)
            raise NotThere(f"{file} of run {name!r} cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotThere(f"{file} of run {name!r} is no regular file; it is not read")
            yield stream

    def read_json(self, name: str, file: str) -> Any:
        """Parsed JSON of a file of a run.

        Raises:
            NotThere: as `open`; DataError: it is no JSON, or larger than any file that a run writes.
        """
        with self.open(name, file) as stream:
            raw = stream.read(LARGEST_JSON + 1)
        if len(raw) > LARGEST_JSON:
            raise DataError(
                f"{file} of run {name!r} is larger than {LARGEST_JSON >> 20} MiB; no run writes such a file"
            )
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} of run {name!r} is not JSON ({error})") from error

    def gate_steps(self, name: str) -> list[int]:
        """Steps at which the run stored a gate map."""
        folder = self.root / name / "gates"
        if not folder.is_dir() or not self._is_inside(folder):
            return []
        try:
            stems = [
                Path(file).stem for file in os.listdir(folder) if file.startswith("step-") and file.endswith(".json")
            ]
        except OSError:
            return []
        return sorted({int(stem[len("step-") :]) for stem in stems if stem[len("step-") :].isdecimal()})

    def _descriptor(self, name: str, file: str) -> int:
        """Open a file without following links; where there is one, only after looking up where it leads.

        The quick way matters: a first look at 1,000 runs opens 3,000 files.
        """
        if not _is_name(name):
            raise FileNotFoundError(errno.ENOENT, "there is no such run")
        if "/" not in file:
            try:
                inside = os.open(self._real / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    return os.open(file, _READ, dir_fd=inside)
                finally:
                    os.close(inside)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
        real = (self._real / name / file).resolve(strict=True)
        if not real.is_relative_to(self._real):
            raise NotThere(f"{file} of run {name!r} is a link that leads outside {self.root}; it is not read")
        return os.open(real, _READ)

    def _is_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._real)
        except (OSError, RuntimeError):
            return False


def _is_name(name: str) -> bool:
    """May this be the name of a direct child of a folder?"""
    return name not in ("", ".", "..") and not any(mark in name for mark in ("/", "\\", "\0"))
