"""HotpotQA (distractor setting) as a routing problem: which units of a question's own context hold supporting facts?

A file is JSONL or JSON in the schema of the Hugging Face data set: id, question, supporting_facts {title[], sent_id[]},
context {title[], sentences[][]}. `hub:NAME:SPLIT` is such a data set itself (extra `datasets`). No torch here.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.errors import ConfigError, DataError, nearest
from turnout.tasks.hub import dataset_rows

UNITS = ("segments", "sentences", "paragraphs")
HUB = "hub:"
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingQuestion:
    """One question and its candidate units.

    Attributes:
        id, text: of the question.
        units: candidate texts, in document order.
        gold: indices of units with at least one supporting sentence, ascending, never empty.
    """

    id: str
    text: str
    units: tuple[str, ...]
    gold: tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class Questions:
    """Questions of one file, and what was left out of it and why.

    Attributes:
        items: in file order.
        skipped: reason -> number of questions left out.
        lost_facts: supporting facts that point at no sentence, in questions that were kept.
        empty_paragraphs: paragraphs without a sentence, in questions that were kept; they are no candidates.
    """

    items: list[RoutingQuestion] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    lost_facts: int = 0
    empty_paragraphs: int = 0

    def skip(self, reason: str) -> None:
        """Count one question as left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


def load_hotpotqa(path: str | Path, *, unit: str = "segments", segments: int = 16, by: str = "sentences") -> Questions:
    """Read a file and cut every context into units.

    Args:
        path: .jsonl, .json with a list, or "hub:NAME:SPLIT" (its subset "distractor").
        unit: "segments" (the whole context in `segments` consecutive parts), "sentences" or "paragraphs".
        segments: number of parts.
        by: parts of equal numbers of "sentences", or of nearly equal numbers of "words" (sentences stay whole).
    Returns:
        The questions. A question without a supporting fact in any unit, or with fewer sentences than segments, is left
        out and counted; it never disappears silently.
    Raises:
        ConfigError: unknown unit or rule.
        DataError: no such file, not JSON, a missing field, an empty context, or no usable question.
    """
    for name, value, known in (("unit", unit, UNITS), ("by", by, ("sentences", "words"))):
        if value not in known:
            raise ConfigError(f"hotpotqa {name}={value!r}{nearest(value, known)}")
    if segments < 2:
        raise ConfigError(f"hotpotqa segments={segments}; expected at least 2")
    found = Questions()
    rows = _hub_rows(str(path)) if str(path).startswith(HUB) else _records(Path(path))
    for where, record in rows:
        _add(found, record, where, unit, segments, by)
    if not found.items:
        raise DataError(f"{path} has no usable question; left out: {found.skipped or 'nothing, the file is empty'}")
    return found


def hotpot_splits(where: str) -> dict[str, str]:
    """What to train on and what to test on: two files of a folder by their names, or two splits of "hub:NAME".

    Raises:
        DataError: a folder without such files.
    """
    if where.startswith(HUB):
        # The test split of the release has no answers.
        return {"train": f"{where}:train", "test": f"{where}:validation"}
    found = {name: sorted(Path(where).glob(f"*{name}*.json*")) for name in ("train", "test")}
    for name, files in found.items():
        if not files:
            raise DataError(
                f"no HotpotQA file with {name!r} in its name in {where!r}; set TURNOUT_HOTPOT to a folder with a "
                "training and a test file (distractor setting), or to hub:hotpotqa/hotpot_qa"
            )
    return {name: str(files[0]) for name, files in found.items()}


def _hub_rows(where: str) -> Iterator[tuple[str, Any]]:
    name, _, split = where.removeprefix(HUB).rpartition(":")
    if not name or not split:
        raise ConfigError(f"{where!r} names no split; write hub:NAME:SPLIT, for example hub:hotpotqa/hotpot_qa:train")
    for i, row in enumerate(dataset_rows(name, subset="distractor", split=split)):
        yield f"{where}, row {i}", row


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}); give a HotpotQA file in JSONL or JSON") from error
    try:
        if text.lstrip().startswith("["):
            yield from ((f"{path}, item {i}", record) for i, record in enumerate(json.loads(text)))
            return
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    for i, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"{path}, line {i}", json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {i} is not JSON ({error})") from error


def _add(found: Questions, record: Any, where: str, unit: str, segments: int, by: str) -> None:
    every, facts, text = _parse(record, where)
    paragraphs = [(title, group) for title, group in every if group]
    sentences = [s for _, group in paragraphs for s in group]
    first: dict[str, int] = {}
    count = 0
    for title, group in paragraphs:
        first.setdefault(title, count)
        count += len(group)
    sizes = {title: len(group) for title, group in paragraphs}
    gold = {first[title] + i for title, i in facts if title in first and 0 <= i < sizes[title]}
    lost = len(facts) - sum(title in first and 0 <= i < sizes[title] for title, i in facts)
    if not gold:
        found.skip("no supporting fact in any unit")
        return
    if unit == "segments" and len(sentences) < segments:
        found.skip(f"fewer than {segments} sentences")
        return
    if unit == "paragraphs":
        owner = [p for p, (_, group) in enumerate(paragraphs) for _ in group]
        units = [f"{title}. {' '.join(group)}" for title, group in paragraphs]
    else:
        owner = list(range(len(sentences))) if unit == "sentences" else _segment_of(sentences, segments, by)
        units = [" ".join(s for s, o in zip(sentences, owner, strict=True) if o == u) for u in range(max(owner) + 1)]
    found.lost_facts += lost
    found.empty_paragraphs += len(every) - len(paragraphs)
    found.items.append(
        RoutingQuestion(
            id=str(record.get("id", record.get("_id", where))),
            text=text,
            units=tuple(units),
            gold=tuple(sorted({owner[i] for i in gold})),
        )
    )


def _segment_of(sentences: list[str], segments: int, by: str) -> list[int]:
    """Segment of each sentence; every segment gets at least one."""
    n = len(sentences)
    if by == "sentences":
        return [i * segments // n for i in range(n)]
    sizes = [max(1, len(words(s))) for s in sentences]
    total, seen = sum(sizes), 0
    owner: list[int] = []
    for i, size in enumerate(sizes):
        wanted = (2 * seen + size) * segments // (2 * total)
        previous = owner[-1] if owner else -1
        # No segment is skipped, and enough sentences are left for those that follow.
        owner.append(min(max(wanted, previous, segments - n + i), previous + 1))
        seen += size
    return owner


def _parse(record: Any, where: str) -> tuple[list[tuple[str, list[str]]], list[tuple[str, int]], str]:
    """(title, sentences) of each paragraph, (title, sentence) of each fact, the question."""
    try:
        question, context, facts = record["question"], record["context"], record["supporting_facts"]
        if isinstance(context, dict):
            paragraphs = list(zip(context["title"], context["sentences"], strict=True))
            support = list(zip(facts["title"], facts["sent_id"], strict=True))
        else:
            # The original release: context [[title, [sentence, …]], …], facts [[title, i], …].
            paragraphs, support = [(t, s) for t, s in context], [(t, i) for t, i in facts]
        parsed = [(str(title), _texts(group)) for title, group in paragraphs]
        chosen = [(str(title), operator.index(i)) for title, i in support]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} is no HotpotQA question ({type(error).__name__}: {error}); it needs question, context "
            "{title, sentences} and supporting_facts {title, sent_id}"
        ) from error
    if not isinstance(question, str):
        raise DataError(f"{where} has a question of type {type(question).__name__}; expected text")
    whole = any(group for _, group in parsed)
    if not whole or not question.strip():
        raise DataError(f"{where} has an empty {'question' if whole else 'context'}; remove it from the file")
    return parsed, chosen, question


def _texts(group: Any) -> list[str]:
    """The sentences of a paragraph; one string would be cut into its letters."""
    if isinstance(group, str) or not all(isinstance(sentence, str) for sentence in group):
        raise TypeError("sentences must be a list of texts")
    return list(group)
