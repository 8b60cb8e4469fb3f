from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from turnout.errors import DataError
from turnout.tasks.tokenizer import BpeTokenizer, ByteTokenizer, load_tokenizer

TEXT = "the signal box, the café and the Übersee line\n" * 40


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return BpeTokenizer.train([TEXT.encode()], 280)


def test_bytes_are_their_own_tokens() -> None:
    assert ByteTokenizer().encode(b"abc\xff").tolist() == [97, 98, 99, 255]


def test_byte_tokens_decode_to_something_printable() -> None:
    tokenizer = ByteTokenizer()
    shown = [tokenizer.decode_token(token) for token in range(256)]
    assert all(text.isprintable() and text for text in shown)
    assert [shown[byte] for byte in (0, 9, 10, 32, 65, 92, 127, 195)] == [
        "<doc>", "\\t", "\\n", " ", "A", "\\", "\\x7f", "\\xc3",
    ]  # fmt: skip


def test_bpe_is_lossless_and_shorter_than_bytes(bpe: BpeTokenizer) -> None:
    text = "the café\tÜbersee 東京 🚂\r\n\n  end"
    ids = bpe.encode(text.encode())
    assert b"".join(bpe._bytes[token] for token in ids.tolist()).decode() == text
    assert len(bpe.encode(TEXT.encode())) < 0.6 * len(TEXT.encode())


def test_bpe_knows_every_byte_and_no_text_reaches_the_separator(bpe: BpeTokenizer) -> None:
    assert bpe.vocab == 280
    assert {bytes([byte]) for byte in range(256)} <= set(bpe._bytes.values())
    assert bpe.decode_token(bpe.separator) == "<doc>"
    assert bpe.separator not in bpe.encode(bytes(range(1, 128)))


def test_bpe_tokens_decode_to_something_printable(bpe: BpeTokenizer) -> None:
    shown = [bpe.decode_token(token) for token in range(bpe.vocab)]
    assert all(text.isprintable() and text for text in shown)
    assert " the" in shown


def test_long_text_is_encoded_in_pieces_without_loss(bpe: BpeTokenizer) -> None:
    for text in (TEXT * 80, "Ü" * 100_001, "a b" * 50_000):
        joined = b"".join(bpe._bytes[token] for token in bpe.encode(text.encode()).tolist())
        assert joined.decode() == text
    assert bpe.encode(b"").shape == (0,)


def test_bpe_saves_and_loads(bpe: BpeTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    loaded = load_tokenizer("bpe", tmp_path)
    assert np.array_equal(loaded.encode(TEXT.encode()), bpe.encode(TEXT.encode()))
    assert (loaded.vocab, loaded.separator) == (bpe.vocab, bpe.separator)
    assert isinstance(load_tokenizer("bytes", tmp_path), ByteTokenizer)


def test_training_twice_gives_the_same_tokenizer(bpe: BpeTokenizer) -> None:
    assert BpeTokenizer.train([TEXT.encode()], 280)._json == bpe._json


def test_more_tokens_than_the_text_yields_are_refused() -> None:
    with pytest.raises(DataError, match=r"yields only \d+ BPE tokens, vocab=5000 were asked"):
        BpeTokenizer.train([b"too small a text"], 5000)
