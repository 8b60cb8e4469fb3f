"""Gathered text: whole parts, going on after a kill, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from turnout.errors import ConfigError, DataError, UnsupportedError
from turnout.tasks import TextConfig
from turnout.train.gather import gather, stream

ASKED = {"dataset": "d", "column": "text"}
DOCUMENTS = [f"Document {i}: " + "grüße " * (i % 7) for i in range(40)]


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for part in sorted(folder.glob("*.jsonl")) for line in part.open(encoding="utf-8")]


def test_what_was_killed_goes_on_behind_the_last_whole_part(tmp_path: Path) -> None:
    def torn() -> Iterator[str]:
        yield from DOCUMENTS[:25]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path / "a", torn(), ASKED, part_bytes=200)
    kept = texts(tmp_path / "a")
    assert 0 < len(kept) < 25 and kept == DOCUMENTS[: len(kept)]
    state = gather(tmp_path / "a", DOCUMENTS, ASKED, part_bytes=200)
    assert texts(tmp_path / "a") == DOCUMENTS
    assert state["done"] and state["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert gather(tmp_path / "a", iter(()), ASKED) == state


def test_it_stops_at_the_size_that_was_asked_and_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_CACHE", str(tmp_path / "cache"))
    state = gather(tmp_path / "a", DOCUMENTS, ASKED, max_bytes=600)
    assert 600 <= state["bytes"] < 600 + max(len(text.encode()) for text in DOCUMENTS)
    task = TextConfig(path=str(tmp_path / "a"), length=16).build(0)
    assert task.train_tokens + task.val_tokens == state["bytes"] + len(texts(tmp_path / "a"))


def test_other_folders_and_empty_datasets_are_refused(tmp_path: Path) -> None:
    gather(tmp_path / "a", DOCUMENTS, ASKED)
    with pytest.raises(ConfigError, match="choose another folder"):
        gather(tmp_path / "a", DOCUMENTS, {**ASKED, "dataset": "e"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/mine.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        gather(tmp_path / "b", DOCUMENTS, ASKED)
    with pytest.raises(DataError, match="no text"):
        gather(tmp_path / "c", ["", ""], ASKED)
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(UnsupportedError, match=r"turnout\[datasets\]"):
            list(stream("d", subset=None, split="train", column="text"))
