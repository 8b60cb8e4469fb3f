from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turnout.errors import DataError
from turnout.tasks.documents import hold_out, read_corpus
from turnout.tasks.shards import cache_folder, load_shards, shard_folder, write_shards
from turnout.tasks.tokenizer import ByteTokenizer

RAILWAY = Path(__file__).parents[1] / "fixtures" / "railway.txt"


class WideTokenizer(ByteTokenizer):
    """Bytes moved up, to reach the wider token types."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def encode(self, text: bytes) -> np.ndarray:
        return super().encode(text).astype(np.int64) + self.vocab - 256


def write(folder: Path, tokenizer: ByteTokenizer | None = None) -> None:
    train, val = hold_out(read_corpus(str(RAILWAY)).documents, 0.2)
    write_shards(folder, kind="bytes", tokenizer=tokenizer or ByteTokenizer(), train=train, val=val)


def test_shards_hold_every_document_with_a_separator_after_each(tmp_path: Path) -> None:
    train, val = hold_out(read_corpus(str(RAILWAY)).documents, 0.2)
    write(tmp_path / "shards")
    shards = load_shards(tmp_path / "shards")
    for array, documents, index in ((shards.train, train, shards.train_index), (shards.val, val, shards.val_index)):
        assert bytes(array) == b"".join(document.read() + b"\0" for document in documents)
        assert (index.documents, index.tokens) == (len(documents), len(array))
        assert index.bytes == index.tokens - index.documents


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(256, np.uint8), (257, np.uint16), (1 << 16, np.uint16), (1 << 17, np.uint32)]
)
def test_tokens_take_the_smallest_type_that_holds_them(tmp_path: Path, vocab: int, dtype: type) -> None:
    write(tmp_path / "shards", WideTokenizer(vocab))
    shards = load_shards(tmp_path / "shards")
    assert shards.train.dtype == dtype
    assert shards.train.max() == vocab - 256 + max(RAILWAY.read_bytes())


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TURNOUT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TURNOUT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "turnout"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "turnout"


def test_settings_decide_the_folder() -> None:
    assert shard_folder(vocab=256) == shard_folder(vocab=256)
    assert shard_folder(vocab=256) != shard_folder(vocab=257)


def test_a_full_disk_is_reported_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device; free some space, or point TURNOUT_CACHE"):
        write(tmp_path / "cache" / "shards")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    class Interrupted(ByteTokenizer):
        def encode(self, text: bytes) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache" / "shards", Interrupted())
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_is_no_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(DataError, match=r"could not write the token cache .*point TURNOUT_CACHE to a folder"):
        write(tmp_path / "cache" / "shards")


def test_the_first_writer_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shards"
    write(folder)
    before = load_shards(folder).digest
    # The other process finishes between this one's check and its rename.
    monkeypatch.setattr(Path, "exists", lambda *_args, **_kwargs: False)
    write(folder, WideTokenizer(300))
    assert load_shards(folder).digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def damage_index(folder: Path) -> None:
    (folder / "index.json").write_text("{")


def damage_fields(folder: Path) -> None:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    del index["dtype"]
    (folder / "index.json").write_text(json.dumps(index))


def damage_domains(folder: Path) -> None:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    index["splits"]["val"]["domains"].pop()
    (folder / "index.json").write_text(json.dumps(index))


def damage_tokens(folder: Path) -> None:
    with (folder / "val.bin").open("ab") as file:
        file.truncate(10)


def remove_tokens(folder: Path) -> None:
    (folder / "train.bin").unlink()


def empty_tokens(folder: Path) -> None:
    (folder / "train.bin").write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [damage_index, damage_fields, damage_domains, damage_tokens, remove_tokens, empty_tokens]
)
def test_damaged_shards_are_refused_with_what_to_delete(tmp_path: Path, damage: Any) -> None:
    folder = tmp_path / "shards"
    write(folder)
    damage(folder)
    with pytest.raises(DataError, match=r"the token cache is damaged: .*delete the folder .*shards"):
        load_shards(folder)
