"""Stream a dataset of the Hugging Face hub to local files, which text tasks then tokenise once.

<folder>/part-00000.jsonl, part-00001.jsonl, …   {"text": "…"}, one document a line
         gathered.json                           what was asked, and how far it has come
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from turnout.errors import ConfigError, DataError
from turnout.tasks.hub import dataset_rows
from turnout.train.atomic import write_error, write_file
from turnout.train.jsonfile import read_json, write_json

STATE = "gathered.json"
PART_BYTES = 64_000_000


def gather(
    folder: Path, documents: Iterable[str], asked: dict[str, Any], *, max_bytes: int | None = None,
    part_bytes: int = PART_BYTES,
) -> dict[str, Any]:  # fmt: skip
    """Write documents until they end or `max_bytes` of text are there.

    A part appears whole or not at all. Called again with the same `asked` it goes on behind the last whole part, which
    needs the documents in the same order.

    Returns:
        What `gathered.json` holds: asked, parts, documents, bytes, done.
    Raises:
        ConfigError: the folder holds something else.
        DataError: the disk is full or cannot be written, or no document came.
    """
    state = _state(folder, asked)
    if state["done"]:
        return state
    lines: list[bytes] = []
    size = seen = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for document in documents:
            seen += 1
            if seen <= state["documents"] or not document:
                continue
            lines.append(json.dumps({"text": document}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            size += len(document.encode("utf-8", "replace"))
            full = max_bytes is not None and state["bytes"] + size >= max_bytes
            if size >= part_bytes or full:
                _write(folder, state, lines, seen, size)
                lines, size = [], 0
            if full:
                break
        if lines:
            _write(folder, state, lines, seen, size)
        state["done"] = True
        if not state["bytes"]:
            raise DataError(f"{asked} gave no text; expected documents in the column {asked.get('column')!r}")
        write_json(folder / STATE, state)
    except OSError as error:
        raise write_error(error, folder) from error
    return state


def _state(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    if (folder / STATE).is_file():
        state: dict[str, Any] = read_json(folder / STATE)
        if state["asked"] != asked:
            raise ConfigError(f"{folder} holds {state['asked']}, not {asked}; choose another folder")
        return state
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and was not gathered here; choose another folder")
    return {"asked": asked, "parts": 0, "documents": 0, "bytes": 0, "done": False}


def _write(folder: Path, state: dict[str, Any], lines: list[bytes], seen: int, size: int) -> None:
    write_file(folder / f"part-{state['parts']:05d}.jsonl", b"".join(lines))
    state.update(parts=state["parts"] + 1, documents=seen, bytes=state["bytes"] + size)
    write_json(folder / STATE, state)


def stream(name: str, *, subset: str | None, split: str, column: str) -> Iterable[str]:
    """Documents of a dataset of the hub, or of a local folder that `datasets` reads, one after the other.

    Raises:
        UnsupportedError: the package is not installed.
        DataError: no such dataset, split or column.
    """
    for row in dataset_rows(name, subset=subset, split=split):
        if column not in row:
            raise DataError(f"dataset {name} has no column {column!r}; it has {', '.join(sorted(row))}")
        yield str(row[column])
