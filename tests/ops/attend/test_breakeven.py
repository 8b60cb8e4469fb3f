"""The measured table decides from which fraction of rows attention runs dense."""

from __future__ import annotations

import json
import math

import pytest
import torch

from turnout.ops.attend import breakeven
from turnout.ops.attend.breakeven import break_even

CPU = torch.device("cpu")


@pytest.mark.parametrize(("n_keys", "fraction"), [(1, 0.4), (512, 0.4), (2047, 0.4), (2048, 0.6), (10**6, 0.6)])
def test_the_longest_measured_length_that_is_not_longer_decides(
    n_keys: int, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("cpu", "float32", "64", "forward")
    monkeypatch.setitem(breakeven._TABLE, key, ((512, 0.4, math.inf), (2048, 0.6, 0.9)))
    found = break_even(CPU, torch.float32, n_keys, head_dim=48, backward=False)
    assert found.dense == fraction and f"{512 if fraction == 0.4 else 2048} keys" in found.row
    assert found.scattered == (math.inf if fraction == 0.4 else 0.9)


def test_what_was_not_measured_goes_by_the_default_row() -> None:
    found = break_even(CPU, torch.float32, 100, head_dim=48, backward=True)
    assert found == (0.85, 0.85, "default, forward+backward")


def test_the_committed_table_has_fractions_by_length_and_their_smallest() -> None:
    for row in json.loads(breakeven.FILE.read_text())["rows"]:
        assert 0 < row["fraction"] <= 1
        dense = row.get("by_n_keys", {"0": row["fraction"]})
        assert min(dense.values()) == row["fraction"]
        copied = row.get("scattered_by_n_keys", dense)
        # Copies cost something: no length may find the scattered path faster where plain dense attention is not.
        assert copied.keys() == dense.keys() and all(copied[n] is None or copied[n] >= dense[n] for n in dense)
