"""Gate files: what is read, what is refused and why."""

from __future__ import annotations

import math
from typing import Any

import pytest

from turnout.report.gates import parse_gates

SEQUENCE: dict[str, Any] = {
    "tokens": ["k1", "v2", "k1"], "taken": [[0, 0, 1]], "gate": [[0.1, 0.2, 0.9]], "at": [2], "targets": ["v2"],
    "predictions": ["v2"],
}  # fmt: skip
GATES: dict[str, Any] = {
    "step": 7,
    "phase": "hold",
    "length": 3,
    "layers": 1,
    "groups": 1,
    "mean": [[0, 0.5, 1]],
    "n": 64,
}


def test_a_good_file_is_read_whole() -> None:
    shot = parse_gates({**GATES, "sequences": [SEQUENCE]})
    assert shot and shot.open_per_sequence() == [1.5] and shot.n == 64 and shot.index == (0,)
    assert shot.sequences[0].taken == [[False, False, True]] and not shot.dropped


def test_layers_keep_their_numbers_in_a_partly_routed_model() -> None:
    shot = parse_gates({**GATES, "mean": [[0, 1, 0], [0, 0, 0]], "layer_index": [1, 3]})
    assert shot and shot.index == (1, 3)


def test_a_model_without_routed_layers_has_no_snapshot() -> None:
    assert parse_gates({**GATES, "mean": []}) is None


def test_bins_count_their_tokens_and_the_last_bin_may_be_short() -> None:
    shot = parse_gates({**GATES, "length": 10, "bin": 4, "mean": [[0.5, 0.25, 1.0]]})
    assert shot and shot.open_per_sequence() == [pytest.approx(0.5 * 4 + 0.25 * 4 + 1.0 * 2)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": "no"}, "not a list of rows"),
        ({"mean": [[]]}, "empty"),
        ({"mean": [[1, 2], [1]]}, "differ in length"),
        ({"mean": [["a"]]}, "not a number"),
    ],
)
def test_a_damaged_map_is_refused_with_the_reason(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_gates({**GATES, **change})


@pytest.mark.parametrize(
    "change",
    [{"tokens": ["k1"]}, {"taken": [[0, 0, 1]] * 2}, {"at": [3]}, {"at": ["x"]}, {"gate": [[0.1]]}, {"tokens": None}],
)
def test_a_sequence_whose_parts_do_not_fit_is_dropped_and_counted(change: dict[str, Any]) -> None:
    shot = parse_gates({**GATES, "sequences": [SEQUENCE, {**SEQUENCE, **change}]})
    assert shot and len(shot.sequences) == 1 and shot.dropped == 1


def test_missing_probabilities_and_answers_are_unknown_not_wrong() -> None:
    bare = {key: SEQUENCE[key] for key in ("tokens", "taken", "at")}
    shot = parse_gates({**GATES, "sequences": [bare]})
    assert shot and shot.sequences[0].targets == [""] and all(math.isnan(p) for p in shot.sequences[0].gate[0])
