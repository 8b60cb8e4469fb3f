"""Tokenised text on disk: written once, atomically, then memory-mapped.

    <cache>/text/<key>/  train.bin  val.bin  index.json  [tokenizer.json]

`key` hashes the content of the corpus and every setting that changes the tokens, so a folder never goes stale: other
text or other settings are another folder. `<cache>` is $TURNOUT_CACHE, or turnout/ in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from turnout.errors import DataError
from turnout.tasks.documents import Document
from turnout.tasks.tokenizer import Tokenizer, load_tokenizer

CACHE_VARIABLE = "TURNOUT_CACHE"
# Raise it whenever the same corpus and settings would give other tokens than before.
# 2: the index says which tokens are of which domain; a domain of several documents is on both sides of the split.
_FORMAT = 2
_INDEX = "index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitIndex:
    """One split: tokens on disk (separators included), documents, bytes of text, and whose text lies where.

    Attributes:
        domains: [domain, first token behind it] of each run of documents of one domain, in order.
    """

    tokens: int
    documents: int
    bytes: int
    domains: list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """The two splits as memory-mapped token arrays [n], with the tokenizer that made them."""

    train: np.ndarray
    val: np.ndarray
    train_index: SplitIndex
    val_index: SplitIndex
    tokenizer: Tokenizer
    digest: str


def cache_folder() -> Path:
    """$TURNOUT_CACHE, or `turnout` in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "turnout"


def shard_folder(**settings: Any) -> Path:
    """Where the shards for these settings belong, whether they exist or not."""
    text = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
    return cache_folder() / "text" / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def is_shard_folder(path: str | Path) -> bool:
    """Whether `path` holds shards, and not text."""
    folder = Path(path).expanduser()
    return (folder / _INDEX).is_file() and any((folder / name).is_file() for name in ("train.bin", "val.bin"))


def write_shards(
    folder: Path, *, kind: str, tokenizer: Tokenizer, train: Iterable[Document], val: Iterable[Document]
) -> None:
    """Tokenise both splits into `folder`: all of it appears at once, or nothing does.

    A separator token follows every document. When another process finished the same folder first, its work is kept.

    Raises:
        DataError: the disk is full or the cache folder cannot be written; what was written is removed first.
    Cost: one pass over the text; memory for the largest document.
    """
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        dtype = _dtype(tokenizer.vocab)
        digest = hashlib.blake2b(digest_size=16)
        splits = {
            name: _write_split(scratch / f"{name}.bin", documents, tokenizer, dtype, digest)
            for name, documents in (("train", train), ("val", val))
        }
        tokenizer.save(scratch)
        index = {
            "format": _FORMAT,
            "tokenizer": kind,
            "vocab": tokenizer.vocab,
            "dtype": dtype.name,
            "digest": digest.hexdigest(),
            "splits": {name: asdict(split) for name, split in splits.items()},
        }
        (scratch / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        if not folder.exists():
            _publish(scratch, folder)
    except OSError as error:
        raise DataError(
            f"could not write the token cache {folder}: {error.strerror or error}; "
            f"free some space, or point {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def load_shards(folder: Path) -> Shards:
    """Memory-map the shards in `folder`.

    Raises:
        DataError: the folder is damaged: index unreadable, or a file that is shorter or longer than the index says.
    """
    advice = f"delete the folder {folder} and start again"
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        dtype = np.dtype(index["dtype"])
        splits = {name: SplitIndex(**index["splits"][name]) for name in ("train", "val")}
        arrays = {name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name in splits}
        tokenizer = load_tokenizer(index["tokenizer"], folder)
        digest = str(index["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the token cache is damaged: {error}; {advice}") from error
    for name, split in splits.items():
        if len(arrays[name]) != split.tokens:
            raise DataError(
                f"the token cache is damaged: {name}.bin has {len(arrays[name])} tokens, "
                f"the index says {split.tokens}; {advice}"
            )
        if split.tokens and (not split.domains or split.domains[-1][1] != split.tokens):
            raise DataError(f"the token cache is damaged: the domains of {name}.bin do not cover it; {advice}")
    return Shards(
        train=arrays["train"],
        val=arrays["val"],
        train_index=splits["train"],
        val_index=splits["val"],
        tokenizer=tokenizer,
        digest=digest,
    )


def _write_split(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, dtype: np.dtype[Any], digest: Any
) -> SplitIndex:
    separator = np.array([tokenizer.separator], dtype=dtype).tobytes()
    n_tokens = n_documents = n_bytes = 0
    domains: list[tuple[str, int]] = []
    with path.open("wb") as file:
        for document in documents:
            text = document.read()
            ids = tokenizer.encode(text)
            data = ids.astype(dtype).tobytes() + separator
            file.write(data)
            digest.update(data)
            n_tokens += len(ids) + 1
            n_documents += 1
            n_bytes += len(text)
            if domains and domains[-1][0] == document.domain:
                domains.pop()
            domains.append((document.domain, n_tokens))
        file.flush()
        os.fsync(file.fileno())
    return SplitIndex(tokens=n_tokens, documents=n_documents, bytes=n_bytes, domains=domains)


def _publish(scratch: Path, folder: Path) -> None:
    """Rename the finished folder into place; a race lost to another process is no error."""
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / _INDEX).is_file():
            raise


def _dtype(vocab: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every token."""
    return np.dtype(np.uint8 if vocab <= 1 << 8 else np.uint16 if vocab <= 1 << 16 else np.uint32)
