from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from turnout.config import from_dict, to_dict
from turnout.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from turnout.models import CausalLM, ModelConfig
from turnout.tasks import TextConfig
from turnout.tasks.batch import Batch
from turnout.tasks.documents import hold_out, read_corpus
from turnout.tasks.text import TextTask
from turnout.train.evaluate import evaluate

RAILWAY = Path(__file__).parents[1] / "fixtures" / "railway.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TURNOUT_CACHE", str(folder))
    return folder


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """One document of 300 different lines."""
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number} of the book says {number * number}\n" for number in range(300)))
    return path


def text_of(task: TextTask, batch: Batch) -> list[str]:
    return ["".join(map(task.decode_token, row)) for row in batch.tokens.tolist()]


def test_streams_are_seeded_separate_fixed_and_resumable(laws: Any, book: Path) -> None:
    laws.check_streams(TextConfig(path=str(book), length=16, val_frac=0.4))


def test_every_field_changes_the_batch(laws: Any, book: Path) -> None:
    config = TextConfig(path=str(book), length=16, tokenizer="bpe", vocab=280)
    changed = {
        "path": str(RAILWAY), "length": 17, "tokenizer": "bytes", "vocab": 270, "val_frac": 0.3, "max_mb": 0.005,
        "packing": True,
    }  # fmt: skip
    varied_alone = {name: value for name, value in changed.items() if name != "tokenizer"}
    batch = config.build(0).train_batch(8)
    assert changed.keys() == {field.name for field in dataclasses.fields(config)}
    for name, value in varied_alone.items():
        assert not laws.same(batch, dataclasses.replace(config, **{name: value}).build(0).train_batch(8)), name
    raw = TextConfig(path=str(book), length=16)
    assert not laws.same(batch, raw.build(0).train_batch(8))


@pytest.mark.parametrize("settings", [{}, {"tokenizer": "bpe", "vocab": 300}])
def test_targets_are_the_next_tokens_at_every_position(laws: Any, settings: dict[str, Any]) -> None:
    task = TextConfig(path=str(RAILWAY), length=33, val_frac=0.25, **settings).build(0)
    for batch in (task.train_batch(5), next(task.eval_batches(1, 5))):
        laws.check_batch(task, batch, 5)
        assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
        assert torch.equal(batch.at, torch.arange(33).expand(5, -1))
        assert batch.slices["position"][0].tolist() == [1, 2, 2] + [4] * 4 + [8] * 8 + [16] * 16 + [32] * 2


def test_there_is_no_oracle_and_no_chance_level() -> None:
    task = TextConfig(path=str(RAILWAY), length=32).build(0)
    assert not task.has_oracle
    assert task.chance is None
    assert not task.train_batch(3).hint.any()


def test_windows_are_the_text_itself(book: Path) -> None:
    task = TextConfig(path=str(book), length=20).build(0)
    printed = book.read_text().replace("\n", "\\n")
    assert all(window in printed for window in text_of(task, task.train_batch(20)))


def test_one_document_is_cut_at_a_line_and_its_tail_is_held_out(book: Path) -> None:
    task = TextConfig(path=str(book), length=20).build(0)
    text = book.read_text()
    held = bytes(task._shards.val[:-1]).decode()
    assert bytes(task._shards.train[:-1]).decode() + held == text
    assert held.startswith("line ")
    assert 0.08 < len(held) / len(text) < 0.12


def test_training_and_validation_windows_share_no_text() -> None:
    task = TextConfig(path=str(RAILWAY), length=24, val_frac=0.25).build(0)
    trained = {window for _ in range(30) for window in text_of(task, task.train_batch(32))}
    validated = [window for batch in task.eval_batches(100, 8) for window in text_of(task, batch)]
    assert len(validated) == len(set(validated)) == (task.val_tokens - 1) // 24
    held = "".join(validated)
    assert not any(window in held for window in trained)


def test_training_reaches_both_ends_of_its_split(tmp_path: Path) -> None:
    path = tmp_path / "digits.txt"
    path.write_text("0123456789" * 2)
    task = TextConfig(path=str(path), length=8, val_frac=0.5).build(0)
    assert task.train_tokens == 11
    firsts = {int(window[0]) for window in text_of(task, task.train_batch(200))}
    assert firsts == {0, 1, 2}


def test_evaluation_takes_evenly_spaced_windows_once_each(book: Path) -> None:
    task = TextConfig(path=str(book), length=16, val_frac=0.4).build(0)
    n_windows = (task.val_tokens - 1) // 16
    few = torch.cat([batch.tokens for batch in task.eval_batches(3, 4)])
    assert few.shape == (12, 16)
    assert len(set(map(tuple, few.tolist()))) == 12
    everything = list(task.eval_batches(10_000, 7))
    assert sum(len(batch.tokens) for batch in everything) == n_windows
    whole = torch.cat([batch.tokens.flatten() for batch in everything])
    assert torch.equal(whole, torch.from_numpy(task._shards.val[: n_windows * 16].astype("int64")))


def test_documents_are_separated_by_a_token_that_no_text_contains() -> None:
    task = TextConfig(path=str(RAILWAY), length=8).build(0)
    assert task.decode_token(0) == "<doc>"
    assert (task._shards.train == 0).sum() + (task._shards.val == 0).sum() == 5


def test_bytes_per_token_is_one_for_bytes_and_more_for_bpe(book: Path) -> None:
    config = TextConfig(path=str(book), length=8)
    assert config.build(0).bytes_per_token == pytest.approx(1.0, abs=0.01)
    assert dataclasses.replace(config, tokenizer="bpe", vocab=300).build(0).bytes_per_token > 1.5


def test_a_state_is_refused_when_the_text_has_changed(book: Path) -> None:
    config = TextConfig(path=str(book), length=8)
    state = json.loads(json.dumps(config.build(0).state_dict()))
    config.with_length(16).build(0).load_state_dict(state)
    book.write_text(book.read_text() + "one more line\n")
    with pytest.raises(CheckpointError, match="gives other tokens than when this state was saved"):
        config.build(0).load_state_dict(state)


def test_config_survives_a_round_trip_with_its_kind() -> None:
    config = TextConfig(path="a.txt", tokenizer="bpe", vocab=512, max_mb=1.5)
    assert to_dict(config)["kind"] == "text"
    assert from_dict(TextConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "path is empty"),
        ({"length": 0}, "length=0; expected at least 1"),
        ({"tokenizer": "byte"}, "'byte' is unknown; did you mean 'bytes'"),
        ({"vocab": 512}, 'tokenizer="bytes" has 256 tokens'),
        ({"tokenizer": "bpe"}, "use vocab > 256"),
        ({"val_frac": 0.0}, "val_frac=0.0; expected a share between 0 and 1"),
        ({"val_frac": 1.0}, "val_frac=1.0"),
        ({"max_mb": 0.0}, "max_mb=0.0; expected a positive number"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextConfig(**{"path": "a.txt", **fields})


def test_a_text_shorter_than_a_window_is_refused_with_the_longest_that_fits(book: Path) -> None:
    with pytest.raises(DataError, match=r"validation split of .* has \d+ tokens, shorter than a window of length=2000"):
        TextConfig(path=str(book), length=2000).build(0)
    with pytest.raises(DataError, match="training split"):
        TextConfig(path=str(book), length=500_000).build(0)


def test_a_limit_below_one_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "umlauts.txt"
    path.write_text("äöü" * 50)
    with pytest.raises(DataError, match="not even one character"):
        TextConfig(path=str(path), max_mb=0.000001).build(0)


def test_a_share_that_whole_documents_cannot_give_is_said(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"the text of {name}\n" * 30)
    with pytest.warns(UserWarning, match=r"5\d% of .* is held out, not val_frac=10%: it has 2 documents"):
        TextConfig(path=str(tmp_path), length=8).build(0)


def test_bpe_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'turnout\[data\]'"):
        TextConfig(path=str(RAILWAY), length=8, tokenizer="bpe", vocab=300).build(0)


def test_tokenised_text_needs_no_tokenizer_package_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TextConfig(path=str(RAILWAY), length=8, tokenizer="bpe", vocab=300)
    task = config.build(0)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    again = config.build(0)
    assert text_of(again, again.train_batch(4)) == text_of(task, task.train_batch(4))


def test_a_copied_token_cache_stands_for_its_text(book: Path, cache: Path, tmp_path: Path) -> None:
    config = TextConfig(path=str(book), length=16)
    first = config.build(0)
    (shards,) = (cache / "text").iterdir()
    copy = shutil.copytree(shards, tmp_path / "copy")
    book.unlink()
    again = dataclasses.replace(config, path=str(copy)).build(0)
    assert torch.equal(first.train_batch(4).tokens, again.train_batch(4).tokens)
    assert again.state_dict()["data"] == first.state_dict()["data"]
    with pytest.raises(ConfigError, match='tokenizer="bytes", vocab=256; the config asks for "bpe", vocab=300'):
        dataclasses.replace(config, path=str(copy), tokenizer="bpe", vocab=300).build(0)
    with pytest.raises(ConfigError, match="tokenised already"):
        dataclasses.replace(config, path=str(copy), max_mb=1.0).build(0)
    (copy / "val.bin").unlink()
    with pytest.raises(DataError, match=r"damaged.*val\.bin"):
        dataclasses.replace(config, path=str(copy)).build(0)


def test_packed_windows_say_where_each_document_begins(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"document {number}\n" * (1 + number % 3))
    task = TextConfig(path=str(tmp_path), length=48, packing=True).build(0)
    batch = task.train_batch(8)
    assert batch.starts is not None and batch.starts.max() > 0
    at = torch.arange(48)
    separators = batch.tokens == task.tokenizer.separator
    for row, marks, starts in zip(batch.tokens, separators, batch.starts, strict=True):
        for t in at.tolist():
            before = marks[: t + 1].nonzero()
            assert int(starts[t]) == (int(before[-1]) if len(before) else 0), row
    assert dataclasses.replace(task.config, packing=False).build(0).train_batch(8).starts is None


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Two folders that use different letters, one of them with its documents one level down, and a file beside them."""
    for number in range(6):
        for place in (f"letters/{number}", "signs"):
            (tmp_path / "mixture" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixture" / "letters" / str(number) / "a.txt").write_text(("abcdefgh"[number:] + "\n") * 30)
        (tmp_path / "mixture" / "signs" / f"{number}.txt").write_text(("+-*/=<>!"[number:] + "\n") * 30)
    (tmp_path / "mixture" / "digits.jsonl").write_text("".join(f'{{"text": "{n}{n}{n}\\n"}}\n' for n in range(10)) * 4)
    return tmp_path / "mixture"


def test_every_target_carries_the_domain_of_its_document(mixture: Path) -> None:
    task = TextConfig(path=str(mixture), length=16).build(0)
    assert task.slice_names == {"domain": ["digits.jsonl", "letters", "signs"]}
    alphabet = [set("0123456789"), set("abcdefgh"), set("+-*/=<>!")]
    batches = [task.train_batch(200), *task.eval_batches(1000, 16)]
    for batch in batches:
        pairs = zip(batch.targets.flatten().tolist(), batch.slices["domain"].flatten().tolist(), strict=True)
        assert all(target in (0, 10) or chr(target) in alphabet[domain] for target, domain in pairs)
    held = {domain for batch in batches[1:] for domain in batch.slices["domain"].flatten().tolist()}
    assert held == set(batches[0].slices["domain"].flatten().tolist()) == {0, 1, 2}, "each domain on both sides"


def test_documents_stay_whole_where_the_domain_decides_what_is_held_out(mixture: Path) -> None:
    corpus = read_corpus(str(mixture))
    train, val = hold_out(corpus.documents, 0.1)
    assert {d.name for d in train} | {d.name for d in val} == {d.name for d in corpus.documents}
    assert not {d.name for d in train} & {d.name for d in val}
    assert all((d.first, d.last) == (0, len(d.read())) for d in val)


def test_an_evaluation_names_the_domains(mixture: Path) -> None:
    task = TextConfig(path=str(mixture), length=16).build(0)
    model = CausalLM(ModelConfig(layers=1, width=8, heads=1), vocab=256)
    groups = evaluate(model, task, sequences=1000, batch=16)["slices"]["domain"]
    assert [group["value"] for group in groups] == ["digits.jsonl", "letters", "signs"]
    assert sum(group["n"] for group in groups) == (task.val_tokens - 1) // 16 * 16


def test_text_of_one_domain_has_no_domain_slice(book: Path) -> None:
    task = TextConfig(path=str(book), length=16).build(0)
    assert task.slice_names == {} and "domain" not in task.train_batch(2).slices
