"""The index of metrics files: exact for small ones, bounded work for large ones, unharmed by damage."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.served import eval_line, event_line, train_line
from turnout.dashboard import metrics
from turnout.dashboard.metrics import Metrics, MetricsIndex, last_of


def read(path: Path, index: MetricsIndex | None = None) -> Metrics:
    with open(path, "rb") as stream:
        return (index or MetricsIndex()).read(stream)


def steps(seen: Metrics, kind: str) -> list[int]:
    return [line["step"] for line in seen.lines if line["kind"] == kind]


def test_a_small_file_is_read_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(train_line(step) for step in range(5)) + eval_line(5) + event_line(5, "hello"))
    seen = read(path)
    assert (steps(seen, "train"), steps(seen, "eval"), steps(seen, "event")) == ([0, 1, 2, 3, 4], [5], [5])
    assert (seen.whole, seen.searched, seen.damaged, seen.cut_off) == (True, 1.0, 0, False)


@given(st.integers(0, 400))
def test_reading_while_it_is_written_ends_with_what_reading_at_the_end_gives(cut: int) -> None:
    text = ("".join(train_line(step) + eval_line(step) for step in range(3))).encode()
    cut = cut * len(text) // 400
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"turnout-metrics-{os.getpid()}.jsonl"
    try:
        index = MetricsIndex()
        path.write_bytes(text[:cut])
        first = read(path, index)
        assert first.damaged == 0, "a half-written line is not a damaged one"
        assert first.cut_off == (cut > 0 and text[cut - 1 : cut] != b"\n")
        with open(path, "ab") as stream:
            stream.write(text[cut:])
        assert read(path, index).lines == read(path).lines
    finally:
        path.unlink(missing_ok=True)


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        train_line(0).encode() + b'{"kind": "tr\n\xff\xfe\x00\n[1, 2]\n' + train_line(1).encode() + b'{"ki'
    )
    seen = read(path)
    assert steps(seen, "train") == [0, 1]
    assert (seen.damaged, seen.cut_off) == (3, True)


def test_a_file_that_was_cut_and_written_again_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(train_line(step) for step in range(10)))
    index = MetricsIndex()
    read(path, index)
    # A resumed run forgets what it wrote after the checkpoint and writes other lines, past the old end.
    path.write_text("".join(train_line(step, loss=1.5) for step in range(14)))
    seen = read(path, index)
    assert steps(seen, "train") == list(range(14)) and all(line["loss"] == 1.5 for line in seen.lines)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large-file rules from 64 KiB on, so that tests stay small."""
    monkeypatch.setattr(metrics, "WHOLE_BYTES", 64 * 2**10)
    monkeypatch.setattr(metrics, "SAMPLES", 64)
    monkeypatch.setattr(metrics, "TAIL", 4 * 2**10)
    monkeypatch.setattr(metrics, "WINDOW", 2 * 2**10)


def write_large(path: Path, lines: int) -> None:
    with path.open("w") as stream:
        for step in range(lines):
            stream.write(train_line(step))
            if step % 500 == 499:
                stream.write(eval_line(step))
        stream.write(event_line(lines, "the end"))


@pytest.mark.usefixtures("small_limits")
def test_a_large_file_shows_every_evaluation_a_spread_sample_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_large(path, 3000)
    seen = read(path)
    assert not seen.whole and seen.searched == 1.0 and seen.damaged == 0
    assert steps(seen, "eval") == [499, 999, 1499, 1999, 2499, 2999]
    assert steps(seen, "event") == [3000]
    shown = steps(seen, "train")
    assert shown == sorted(set(shown)) and shown[0] == 0 and shown[-1] == 2999
    gaps = [b - a for a, b in itertools.pairwise(shown)]
    assert max(gaps) <= 2 * 3000 / metrics.SAMPLES * 2, "no part of the run is left out"


@pytest.mark.usefixtures("small_limits")
def test_the_work_of_a_first_view_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SLICE_SECONDS", 0.0)
    real, bytes_read = os.pread, []

    def counted(descriptor: int, size: int, at: int) -> bytes:
        data = real(descriptor, size, at)
        bytes_read.append(len(data))
        return data

    monkeypatch.setattr(metrics.os, "pread", counted)
    costs, calls = [], []
    for lines in (1000, 8000):
        path = tmp_path / f"{lines}.jsonl"
        write_large(path, lines)
        bytes_read.clear()
        read(path)
        costs.append(sum(bytes_read))
        calls.append(len(bytes_read))
    # The stride is a power of two, so the number of samples may double; it does not grow eightfold.
    assert max(costs) <= 2.2 * min(costs) and max(calls) <= 2.2 * min(calls)


@pytest.mark.usefixtures("small_limits")
def test_the_search_goes_on_where_it_stopped_and_ends_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    write_large(path, 3000)
    whole = read(path)
    monkeypatch.setattr(metrics, "CHUNK", 32 * 2**10)
    monkeypatch.setattr(metrics, "SLICE_SECONDS", 1e-9)
    index, shares = MetricsIndex(), []
    while not shares or shares[-1] < 1:
        # A slice that is too short for one chunk still makes progress on the next call, because time is asked before.
        monkeypatch.setattr(metrics.time, "perf_counter", iter([0.0, 0.0, 1.0, 1.0]).__next__)
        seen = read(path, index)
        shares.append(seen.searched)
    assert shares == sorted(shares) and len(shares) > 5
    assert steps(seen, "eval") == steps(whole, "eval")


@pytest.mark.usefixtures("small_limits")
def test_a_growing_large_file_keeps_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_large(path, 1000)
    index = MetricsIndex()
    before = set(steps(read(path, index), "train"))
    with path.open("a") as stream:
        stream.writelines(train_line(step) for step in range(1001, 1200))
    after = steps(read(path, index), "train")
    assert after[-1] == 1199
    assert len(before - set(after)) <= metrics.TAIL // len(train_line(0)) + 1, "only lines of the old end may go"


@pytest.mark.usefixtures("small_limits")
def test_a_large_file_without_line_ends_shows_nothing_and_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(os.urandom(300_000).replace(b"\n", b" "))
    assert read(path).lines == []


def test_the_last_lines_of_each_kind_are_found_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(eval_line(1) + "".join(train_line(step) for step in range(4)) + eval_line(3) + '{"kind": "train"')
    with open(path, "rb") as stream:
        found = last_of(stream, ("train", "eval"))
    assert (found["train"]["step"], found["eval"]["step"]) == (3, 3)
