"""Tokenizers for local text: raw bytes, or byte-level BPE trained once on the training documents.

Both are lossless on UTF-8 text. Text has no NUL bytes (`documents` refuses them), so the token of byte 0 is free to
mark the end of a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from turnout.errors import DataError, UnsupportedError
from turnout.tasks.documents import cut_before

SEPARATOR_NAME = "<doc>"
_FILE = "tokenizer.json"
# Text is handed to the BPE library in pieces, so that it can work on several at once in bounded memory.
_PIECE = 1 << 16


class Tokenizer(Protocol):
    """Bytes of text to token ids."""

    vocab: int
    separator: int

    def encode(self, text: bytes) -> np.ndarray:
        """Token ids, integer [n]."""
        ...

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens; a token may be part of a character."""
        ...

    def decode_token(self, token: int) -> str:
        """The token's text, printable: control characters and partial characters escaped."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs."""
        ...

    def to_json(self) -> str:
        """A `tokenizer.json` that the `tokenizers` library reads."""
        ...


class ByteTokenizer:
    """One token a byte; byte 0 ends a document."""

    vocab = 256
    separator = 0

    def encode(self, text: bytes) -> np.ndarray:
        """The bytes themselves, uint8 [n]."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes themselves."""
        return bytes(tokens)

    def decode_token(self, token: int) -> str:
        """The character of an ASCII byte, `\\n`, `\\xc3` or `<doc>`."""
        return _printable(bytes([token]))

    def save(self, folder: Path) -> None:
        """Nothing to keep."""

    def to_json(self) -> str:
        """The same tokenizer in the format of the `tokenizers` library: byte-level BPE without a merge."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        model: dict[str, Any] = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {symbol: byte for byte, symbol in sorted(_byte_symbols().items())}, "merges": [],
        }  # fmt: skip
        parts: dict[str, Any] = {
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": level,
        }
        return json.dumps({"version": "1.0", **parts, "post_processor": None, "decoder": level, "model": model})


class BpeTokenizer:
    """Byte-level BPE of the `tokenizers` library; decoding needs only the file it wrote."""

    def __init__(self, text_json: str) -> None:
        self._json = text_json
        symbols: dict[str, int] = json.loads(text_json)["model"]["vocab"]
        byte_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
        self._bytes = {token: bytes(byte_of[char] for char in symbol) for symbol, token in symbols.items()}
        self.vocab = len(symbols)
        self.separator = symbols[_byte_symbols()[0]]
        self._encoder: Any = None

    @classmethod
    def train(cls, texts: Iterable[bytes], vocab: int) -> BpeTokenizer:
        """Learn `vocab` tokens from texts.

        Raises:
            UnsupportedError: the `tokenizers` package is missing.
            DataError: the texts are too small to yield so many tokens.
        """
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab,
            initial_alphabet=sorted(_byte_symbols().values()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
        found = tokenizer.get_vocab_size()
        if found != vocab:
            raise DataError(
                f"the training text yields only {found} BPE tokens, vocab={vocab} were asked; "
                f"use vocab={found} or more text"
            )
        return cls(tokenizer.to_str())

    def encode(self, text: bytes) -> np.ndarray:
        """Token ids, int64 [n]."""
        if self._encoder is None:
            self._encoder = _library().Tokenizer.from_str(self._json)
        encoded = self._encoder.encode_batch(list(_pieces(text)), add_special_tokens=False)
        return np.fromiter((token for piece in encoded for token in piece.ids), dtype=np.int64)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of all tokens, joined."""
        return b"".join(self._bytes[token] for token in tokens)

    def decode_token(self, token: int) -> str:
        """The token's text; bytes that are only part of a character are escaped (`\\xc3`)."""
        return _printable(self._bytes[token])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        (folder / _FILE).write_text(self._json, encoding="utf-8")

    def to_json(self) -> str:
        """The file of the `tokenizers` library, with a decoder for code that has none of its own."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return json.dumps({**json.loads(self._json), "decoder": level})


def load_tokenizer(kind: str, folder: Path) -> Tokenizer:
    """The tokenizer that was saved with the shards in `folder`."""
    return ByteTokenizer() if kind == "bytes" else BpeTokenizer((folder / _FILE).read_text(encoding="utf-8"))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of an exported model.

    Raises:
        DataError: there is none, or it is not byte-level BPE.
    """
    path = folder / _FILE
    try:
        text = path.read_text(encoding="utf-8")
        model = json.loads(text)["model"]
        found = BpeTokenizer(text)
    except FileNotFoundError as error:
        raise DataError(f"{folder} has no {_FILE}; copy the one that the model was trained with there") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not byte-level BPE ({error!r}); expected the file that was exported") from error
    return ByteTokenizer() if found.vocab == ByteTokenizer.vocab and not model["merges"] else found


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UnsupportedError(
            'tokenizer="bpe" needs the package tokenizers, which is not installed; '
            "pip install 'turnout[data]', or use tokenizer=\"bytes\""
        ) from error
    return tokenizers


def _pieces(text: bytes) -> Iterator[str]:
    """The text in pieces of about 64 kB, cut at line ends where there are any."""
    start = 0
    while start < len(text):
        window = text[start : start + _PIECE + 1]
        # A window of continuation bytes alone is not UTF-8 and has no cut; it goes through whole.
        size = cut_before(window, _PIECE) or len(window)
        yield window[:size].decode("utf-8", "replace")
        start += size


def _byte_symbols() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each byte (Radford et al. 2019): itself, or 256 + rank."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + rank) for rank, byte in enumerate(hidden)}


def _printable(data: bytes) -> str:
    """Text as it is; control characters, and bytes that are no whole character, as Python escapes."""
    if data == b"\0":
        return SEPARATOR_NAME
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in data)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
