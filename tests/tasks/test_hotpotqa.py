from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from turnout.errors import ConfigError, DataError
from turnout.tasks.hotpotqa import hotpot_splits, load_hotpotqa, words


def question(n_sentences: int = 20, fact: tuple[str, int] = ("P0", 1), **changes: Any) -> dict[str, Any]:
    half = n_sentences // 2
    context = {
        "title": ["P0", "P1"],
        "sentences": [
            [f"Line {i} of zero." for i in range(half)],
            [f"Line {i} of one." for i in range(n_sentences - half)],
        ],
    }
    facts = {"title": [fact[0], "P1"], "sent_id": [fact[1], 0]}
    return {"id": "q", "question": "Which line?", "context": context, "supporting_facts": facts} | changes


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize("by", ["sentences", "words"])
def test_segments_cover_the_context_once_and_in_order(tmp_path: Path, by: str) -> None:
    (item,) = load_hotpotqa(write(tmp_path / "a.jsonl", question(37)), by=by).items
    assert len(item.units) == 16 and all(item.units)
    whole = question(37)["context"]["sentences"]
    assert words(" ".join(item.units)) == words(" ".join(s for group in whole for s in group))


def test_gold_units_hold_the_supporting_sentences(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", question())
    (segments,) = load_hotpotqa(path).items
    assert any("Line 1 of zero." in segments.units[i] for i in segments.gold)
    (sentences,) = load_hotpotqa(path, unit="sentences").items
    assert [sentences.units[i] for i in sentences.gold] == ["Line 1 of zero.", "Line 0 of one."]
    (paragraphs,) = load_hotpotqa(path, unit="paragraphs").items
    assert paragraphs.gold == (0, 1) and paragraphs.units[0].startswith("P0. Line 0")


def test_the_original_release_format_reads_the_same(tmp_path: Path) -> None:
    new = question()
    old = {
        "_id": "q",
        "question": new["question"],
        "context": [list(pair) for pair in zip(new["context"]["title"], new["context"]["sentences"], strict=True)],
        "supporting_facts": [["P0", 1], ["P1", 0]],
    }
    (tmp_path / "old.json").write_text(json.dumps([old]))
    assert load_hotpotqa(tmp_path / "old.json").items == load_hotpotqa(write(tmp_path / "n.jsonl", new)).items


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    elsewhere = question(supporting_facts={"title": ["Nowhere"], "sent_id": [0]})
    found = load_hotpotqa(write(tmp_path / "a.jsonl", question(), question(6), elsewhere, question(20, ("P0", 99))))
    assert len(found.items) == 2
    assert found.skipped == {"fewer than 16 sentences": 1, "no supporting fact in any unit": 1}
    assert found.lost_facts == 1


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"question": "x"}, "needs question, context"),
        (question(context={"title": ["a", "b"], "sentences": [["one"]]}), "is no HotpotQA question"),
        (question(context={"title": ["a"], "sentences": [[]]}), "empty context"),
        (question(question=" "), "empty question"),
        ([1, 2], "is no HotpotQA question"),
    ],
)
def test_malformed_questions_are_named_with_their_line(tmp_path: Path, record: Any, what: str) -> None:
    path = write(tmp_path / "bad.jsonl", question(), record)
    with pytest.raises(DataError, match=what) as error:
        load_hotpotqa(path)
    assert "line 2" in str(error.value)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_hotpotqa(tmp_path / "none.jsonl")
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        load_hotpotqa(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="no usable question"):
        load_hotpotqa(write(tmp_path / "few.jsonl", question(4)))
    with pytest.raises(ConfigError, match="segments"):
        load_hotpotqa(tmp_path / "x.jsonl", unit="segment")


def test_a_dataset_of_the_hub_is_read_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str, **options: Any) -> list[Any]:
        asked.append((name, subset, options["split"]))
        return [question(37), question(20)]

    # The package itself would have to download.
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    files = hotpot_splits("hub:a/b")
    assert files == {"train": "hub:a/b:train", "test": "hub:a/b:validation"}
    path = write(tmp_path / "a.jsonl", question(37), question(20))
    assert load_hotpotqa(files["test"]).items == load_hotpotqa(path).items
    assert asked == [("a/b", "distractor", "validation")]
    with pytest.raises(ConfigError, match="names no split"):
        load_hotpotqa("hub:squad")


def test_a_folder_without_both_files_says_which_is_missing(tmp_path: Path) -> None:
    (tmp_path / "my_train.jsonl").touch()
    with pytest.raises(DataError, match="no HotpotQA file with 'test'"):
        hotpot_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"supporting_facts": {"title": ["P0"], "sent_id": ["one"]}}, "no HotpotQA question"),
        ({"supporting_facts": {"title": ["P0"], "sent_id": [None]}}, "no HotpotQA question"),
        ({"context": {"title": ["P0"], "sentences": ["One text, not a list of them."]}}, "list of texts"),
        ({"context": {"title": ["P0"], "sentences": [[1, 2]]}}, "list of texts"),
        ({"question": None}, "question of type NoneType"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_their_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=f"line 2.*{words}"):
        load_hotpotqa(write(tmp_path / "a.jsonl", question(), question(**changes)))


def test_paragraphs_without_a_sentence_are_counted(tmp_path: Path) -> None:
    whole = question()
    whole["context"]["title"].append("P2")
    whole["context"]["sentences"].append([])
    found = load_hotpotqa(write(tmp_path / "a.jsonl", whole), unit="paragraphs")
    assert len(found.items[0].units) == 2 and found.empty_paragraphs == 1
