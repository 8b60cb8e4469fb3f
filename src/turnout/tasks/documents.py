"""Documents of a local text file or folder, and which of them are held out.

A document is the unit that is never split between training and validation: a file, a section of a file under a
`==== name ====` line (when it has at least two), or a record of a `.jsonl` file with a "text" string or "turns", a list
of [speaker, text]. Only a corpus of one single document is cut, at a line near its end.

Which documents are held out depends on their names and sizes, never on a seed: all runs share one validation set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from turnout.errors import DataError

SUFFIXES = (".txt", ".md", ".jsonl")
# Above this share of undecodable bytes a file is taken for another encoding or a binary format.
MAX_INVALID_FRAC = 0.01
# A cut looks at most so many bytes back for a line end before it settles for a character boundary.
_CUT_REACH = 4096
_HEADER = re.compile(rb"^==== ([^=\s][^=\n]*) ====[ \t\r]*\n", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Bytes first..last of the text found at offset..offset+length of a file.

    Attributes:
        name: path below the corpus root, with the section or record after a `#`.
        group: the folder it lies in; the held-out share is taken from each group.
        path: the file.
        offset, length: where it lies in the file, in bytes.
        record: whether that place holds a JSON record rather than the text itself.
        first, last: the part of the text that belongs to the corpus, in bytes of UTF-8.
    """

    name: str
    group: str
    path: Path
    offset: int
    length: int
    record: bool
    first: int
    last: int

    @property
    def size(self) -> int:
        """Bytes of text."""
        return self.last - self.first

    @property
    def domain(self) -> str:
        """The first folder below the corpus root, or the file's name where it lies directly there."""
        folder, slash, _ = self.name.partition("/")
        return folder if slash else self.path.name

    def read(self) -> bytes:
        """The text. Raises DataError when the file has gone or changed."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                raw = file.read(self.length)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}; check the file and its permissions") from error
        text = _record_text(raw, self.name) if self.record else raw
        return text[self.first : self.last]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """All documents in the order of their files, and a digest of names and bytes."""

    documents: tuple[Document, ...]
    digest: str

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(document.size for document in self.documents)


def read_corpus(path: str) -> Corpus:
    """Find and check every document below `path`.

    Args:
        path: a text file of any suffix, or a folder, searched recursively for .txt, .md and .jsonl; hidden names are
            skipped.
    Raises:
        DataError: missing, unreadable, no text file, empty, binary, not UTF-8, or a record without text.
    Cost: reads every file once; holds one file at a time.
    """
    root = Path(path).expanduser()
    files = _files(root)
    digest = hashlib.blake2b(digest_size=16)
    documents: list[Document] = []
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}; check the file and its permissions") from error
        _check_text(raw, file)
        digest.update(f"{name}\0{len(raw)}\0".encode())
        digest.update(raw)
        record = file.suffix == ".jsonl"
        for label, offset, length, size in _records(raw, name) if record else _sections(raw):
            documents.append(
                Document(
                    name=f"{name}#{label}" if label else name,
                    group=name.rpartition("/")[0],
                    path=file,
                    offset=offset,
                    length=length,
                    record=record,
                    first=0,
                    last=size,
                )
            )
    if not documents:
        raise DataError(
            f"{root} holds no text: {_count(len(files), 'file')}, all empty or blank; give a file with text in it"
        )
    return Corpus(documents=tuple(documents), digest=digest.hexdigest())


def limit_size(documents: Sequence[Document], max_bytes: int) -> list[Document]:
    """Documents in name-hash order up to `max_bytes` in all, the last one cut to fit; returned in corpus order."""
    kept: dict[str, Document] = {}
    left = max_bytes
    for document in sorted(documents, key=_name_hash):
        if left <= 0:
            break
        if document.size > left:
            last = document.first + cut_before(document.read(), left)
            document = replace(document, last=last)
        left -= max(document.size, 1)
        if document.size:
            kept[document.name] = document
    return [kept[document.name] for document in documents if document.name in kept]


def hold_out(documents: Sequence[Document], val_frac: float) -> tuple[list[Document], list[Document]]:
    """Split into training and validation documents, about `val_frac` of the bytes of every folder held out.

    Whole documents, chosen by the hash of their names. Folders with a single document are pooled, and a domain that has
    several documents is on both sides. One document alone is cut at a line end: its tail is the validation text.
    """
    if len(documents) == 1:
        (document,) = documents
        reach = min(_CUT_REACH, int(document.size * val_frac / 2))
        cut = document.first + cut_before(document.read(), round(document.size * (1 - val_frac)), reach)
        return [replace(document, last=cut)], [replace(document, first=cut)]
    groups: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        groups[document.group].append(document)
    pooled = [members[0] for members in groups.values() if len(members) == 1]
    splittable = [members for members in groups.values() if len(members) > 1] + ([pooled] if len(pooled) > 1 else [])
    held = {document.name for members in splittable for document in _choose(members, val_frac)}
    domains: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        domains[document.domain].append(document)
    for members in domains.values():
        n_held = sum(document.name in held for document in members)
        if len(members) > 1 and n_held in (0, len(members)):
            held -= {document.name for document in members}
            held |= {document.name for document in _choose(members, val_frac)}
    return [d for d in documents if d.name not in held], [d for d in documents if d.name in held]


def cut_before(text: bytes, at: int, reach: int = _CUT_REACH) -> int:
    """A place <= `at` to cut: after the last line end within `reach` bytes, else between two characters."""
    if at >= len(text):
        return len(text)
    line = text.rfind(b"\n", max(0, at - reach), at) + 1
    if line:
        return line
    while at > 0 and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _choose(members: list[Document], val_frac: float) -> list[Document]:
    """Documents that bring the held-out bytes closest to the share, at least one, never all."""
    wanted = val_frac * sum(document.size for document in members)
    ordered = sorted(members, key=_name_hash)
    chosen: list[Document] = []
    total = 0
    for document in ordered:
        closer = abs(total + document.size - wanted) < abs(total - wanted)
        if closer and len(chosen) < len(members) - 1:
            chosen.append(document)
            total += document.size
    return chosen or [min(ordered, key=lambda document: document.size)]


def _name_hash(document: Document) -> bytes:
    return hashlib.blake2b(document.name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _files(root: Path) -> list[Path]:
    """The file itself, or the text files below the folder in name order."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{root} does not exist; give a text file or a folder of {', '.join(SUFFIXES)} files")
    files = [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not files:
        raise DataError(f"{root} holds no {', '.join(SUFFIXES)} file; give a folder with text files, or one text file")
    return files


def _check_text(raw: bytes, file: Path) -> None:
    """Raise DataError for NUL bytes or too many bytes that are not UTF-8."""
    nul = raw.find(b"\0")
    if nul >= 0:
        raise DataError(f"{file} is binary: NUL byte at {nul}; give plain text in UTF-8")
    replacement = "\ufffd"
    n_invalid = raw.decode("utf-8", "replace").count(replacement) - raw.count(replacement.encode())
    if n_invalid > MAX_INVALID_FRAC * len(raw):
        raise DataError(
            f"{file} is not UTF-8 text: {n_invalid / len(raw):.1%} of its bytes do not decode, at most "
            f"{MAX_INVALID_FRAC:.0%} are tolerated; convert it, for example with iconv -f latin1 -t utf-8"
        )


def _sections(raw: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(label, offset, length, size of the text) of each `==== name ====` section, or of the whole file."""
    headers = list(_HEADER.finditer(raw))
    if len(headers) < 2:
        if raw.strip():
            yield "", 0, len(raw), len(raw)
        return
    starts = [("", 0, headers[0].start())]
    ends = [header.start() for header in headers[1:]] + [len(raw)]
    starts += [
        (header[1].decode("utf-8", "replace"), header.end(), end) for header, end in zip(headers, ends, strict=True)
    ]
    for number, (label, start, end) in enumerate(starts):
        if raw[start:end].strip():
            # Two sections may carry one name; the number keeps document names distinct.
            yield f"{number}:{label}", start, end - start, end - start


def _records(raw: bytes, name: str) -> Iterator[tuple[str, int, int, int]]:
    """(label, offset, length, size of the text) of each non-blank line of JSON."""
    offset = 0
    for number, line in enumerate(raw.splitlines(keepends=True), start=1):
        if line.strip():
            text = _record_text(line, f"{name}, line {number}")
            if text.strip():
                yield str(number), offset, len(line), len(text)
        offset += len(line)


def _record_text(line: bytes, where: str) -> bytes:
    """The text of one JSON record as UTF-8."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); a .jsonl file has one JSON object a line") from error
    fields = record if isinstance(record, dict) else {}
    if isinstance(fields.get("text"), str):
        text = fields["text"]
    elif isinstance(fields.get("turns"), list) and all(_is_turn(turn) for turn in fields["turns"]):
        text = "".join(f"{speaker}: {said}\n" for speaker, said in fields["turns"])
    else:
        got = f"an object with {', '.join(fields) or 'no keys'}" if isinstance(record, dict) else type(record).__name__
        raise DataError(f'{where}: no text; expected a "text" string or "turns" as [speaker, text] pairs, got {got}')
    if "\0" in text:
        raise DataError(f"{where}: NUL character in the text; give plain text")
    return text.encode("utf-8", "replace")


def _is_turn(turn: object) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
