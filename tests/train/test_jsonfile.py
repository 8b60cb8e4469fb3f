from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import DataError
from turnout.train.jsonfile import read_json, to_json, write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_plain_values_come_back_equal(value: object) -> None:
    assert json.loads(to_json(value)) == value


def test_what_is_not_finite_becomes_null_at_any_depth() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": torch.tensor([math.nan, 1.0])})
    assert json.loads(text) == {"a": None, "b": [None, {"c": None}], "d": [None, 1.0]}


def test_tensors_arrays_and_paths_become_numbers_lists_and_text() -> None:
    value = {"t": torch.tensor(2), "n": np.float32(0.5), "a": np.arange(2), "p": Path("x/y"), "u": (1, 2)}
    assert json.loads(to_json(value)) == {"t": 2, "n": 0.5, "a": [0, 1], "p": "x/y", "u": [1, 2]}


def test_what_json_cannot_hold_is_a_data_error() -> None:
    with pytest.raises(DataError, match="not JSON serializable"):
        to_json({"a": object()})


def test_a_damaged_file_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    path.write_text('{"a": ')
    with pytest.raises(DataError, match=r"summary\.json is not JSON .*line 1 column 7"):
        read_json(path)


def test_bytes_that_are_not_text_are_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not JSON"):
        read_json(path)
