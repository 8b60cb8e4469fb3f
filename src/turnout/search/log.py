"""Every evaluation of a search as one line, so that a killed search goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from turnout.errors import DataError


class EvaluationLog:
    """JSON lines: the settings first, then one evaluation a line, on disk before the search goes on.

    A line that a kill cut short is dropped. Resuming replays the optimiser from its seed, and its first scores are
    found here.

    Args:
        path: of the file; None keeps nothing.
        settings: what the evaluations hang on.
    Raises:
        DataError: the file belongs to other settings, or cannot be written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.lines = path, []
        head = {"settings": json.loads(json.dumps(settings))}
        if path is None:
            return
        lines = _whole_lines(path)
        if lines and lines[0] != head:
            raise DataError(
                f"{path} holds a search with other settings ({lines[0].get('settings')}); choose another folder, or "
                "the same settings to go on with it"
            )
        self.lines = lines[1:]
        text = "".join(json.dumps(line) + "\n" for line in [head, *self.lines])
        scratch = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error

    def append(self, line: dict[str, Any]) -> None:
        """Write one evaluation and wait until it is on disk."""
        self.lines.append(line)
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}); remove the file to start again") from error
    return found
