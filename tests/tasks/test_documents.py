from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import DataError
from turnout.tasks.documents import Document, cut_before, hold_out, limit_size, read_corpus

RAILWAY = Path(__file__).parents[1] / "fixtures" / "railway.txt"


def write_books(folder: Path, n: int, *, size: int = 1000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        (folder / f"book{number:03}.txt").write_text((f"book {number} " * size)[:size])
    return folder


def names(documents: Sequence[Document]) -> list[str]:
    return [document.name for document in documents]


def test_sections_are_documents_without_their_header_lines() -> None:
    documents = read_corpus(str(RAILWAY)).documents
    assert [name.split(":")[1] for name in names(documents)] == [
        "signal box",
        "the two tracks",
        "rules for the keeper",
        "a letter",
        "inventory",
    ]
    assert documents[0].read().startswith(b"The signal box stands")
    assert b"====" not in b"".join(document.read() for document in documents)
    assert all(document.size == len(document.read()) for document in documents)


def test_table_rules_and_a_lone_header_line_are_ordinary_text(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("==== ==== ====\na b c\n==== ==== ====\n==== one ====\nrest\n")
    (document,) = read_corpus(str(path)).documents
    assert document.read() == path.read_bytes()


def test_text_before_the_first_header_is_a_document_and_blank_sections_are_none(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("preface\n==== a ====\n\n\n==== b ====\nbody\n")
    assert [document.read() for document in read_corpus(str(path)).documents] == [b"preface\n", b"body\n"]


def test_folders_are_searched_for_text_and_hidden_names_are_skipped(tmp_path: Path) -> None:
    for name in ("a.txt", "sub/b.md", "sub/.hidden.txt", ".git/c.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert names(read_corpus(str(tmp_path)).documents) == ["a.txt", "sub/b.md"]


def test_records_give_their_text_or_their_turns(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records = [{"text": "grüße"}, {"turns": [["Ann", "hello"], ["Bob", "hi"]]}, {"text": "  "}]
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    documents = read_corpus(str(path)).documents
    assert [document.read().decode() for document in documents] == ["grüße", "Ann: hello\nBob: hi\n"]
    assert names(documents) == ["records.jsonl#1", "records.jsonl#2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 1: not JSON"),
        ('{"question": "why", "answer": "so"}', "got an object with question, answer"),
        ('{"text": 3}', "got an object with text"),
        ('{"turns": [["only"]]}', "got an object with turns"),
        ("[1]", "got list"),
        ('{"text": "a\\u0000b"}', "NUL character"),
    ],
)
def test_records_without_text_are_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_corpus(str(path))


def test_missing_empty_and_useless_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; give a text file or a folder"):
        read_corpus(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"holds no \.txt, \.md, \.jsonl file"):
        read_corpus(str(tmp_path))
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="holds no text: 1 file, all empty or blank"):
        read_corpus(str(tmp_path))


def test_binary_and_foreign_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"PK\x03\x04\x00\x00rest")
    with pytest.raises(DataError, match="is binary: NUL byte at 4"):
        read_corpus(str(path))
    path.write_bytes("über größe".encode("latin-1") * 10)
    with pytest.raises(DataError, match=r"is not UTF-8 text: \d+\.\d% of its bytes do not decode.*iconv"):
        read_corpus(str(path))


def test_a_stray_bad_byte_and_a_real_replacement_character_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"plain text " * 100 + b"\xff")
    assert read_corpus(str(path)).size == 1101
    path.write_text("\ufffd" * 50)
    assert read_corpus(str(path)).size == 150


def test_the_digest_follows_names_and_content(tmp_path: Path) -> None:
    folder = write_books(tmp_path / "books", 2)
    first = read_corpus(str(folder)).digest
    assert read_corpus(str(folder)).digest == first
    (folder / "book000.txt").rename(folder / "other.txt")
    renamed = read_corpus(str(folder)).digest
    (folder / "other.txt").write_text("changed")
    assert len({first, renamed, read_corpus(str(folder)).digest}) == 3


@pytest.mark.parametrize(("n", "frac"), [(2, 0.1), (3, 0.5), (40, 0.1), (40, 0.9)])
def test_held_out_documents_are_whole_disjoint_and_about_the_share(tmp_path: Path, n: int, frac: float) -> None:
    corpus = read_corpus(str(write_books(tmp_path, n)))
    train, val = hold_out(corpus.documents, frac)
    assert train and val
    assert sorted(names(train) + names(val)) == names(corpus.documents)
    assert abs(len(val) - n * frac) <= 1
    assert names(train) == sorted(names(train)) and names(val) == sorted(names(val))


def test_every_folder_gives_its_share(tmp_path: Path) -> None:
    for folder in ("chat", "law"):
        write_books(tmp_path / folder, 20)
    write_books(tmp_path / "single", 1)
    train, val = hold_out(read_corpus(str(tmp_path)).documents, 0.2)
    assert [sum(document.group == group for document in val) for group in ("chat", "law", "single")] == [4, 4, 0]
    assert len(train) == 33


def test_folders_of_one_document_are_pooled(tmp_path: Path) -> None:
    for number in range(5):
        write_books(tmp_path / f"author{number}", 1)
    train, val = hold_out(read_corpus(str(tmp_path)).documents, 0.2)
    assert (len(train), len(val)) == (4, 1)


def test_a_limit_keeps_whole_documents_but_the_last(tmp_path: Path) -> None:
    corpus = read_corpus(str(write_books(tmp_path, 10)))
    kept = limit_size(corpus.documents, 3500)
    assert sorted(document.size for document in kept) == [500, 1000, 1000, 1000]
    assert sum(len(document.read()) for document in kept) == 3500
    assert names(kept) == sorted(names(kept))


def test_a_limit_reaches_beyond_the_first_documents_by_name(tmp_path: Path) -> None:
    corpus = read_corpus(str(write_books(tmp_path, 10)))
    assert names(limit_size(corpus.documents, 3000)) != names(corpus.documents[:3])


def test_a_file_that_vanishes_is_reported(tmp_path: Path) -> None:
    corpus = read_corpus(str(write_books(tmp_path, 1)))
    (tmp_path / "book000.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*book000\.txt"):
        corpus.documents[0].read()


@given(text=st.text(max_size=60), at=st.integers(0, 200), reach=st.integers(0, 30))
def test_a_cut_never_divides_a_character(text: str, at: int, reach: int) -> None:
    data = text.encode("utf-8", "ignore")
    cut = cut_before(data, at, reach)
    assert 0 <= cut <= min(at, len(data)) or cut == len(data) <= at
    assert data[:cut].decode() + data[cut:].decode() == data.decode()
