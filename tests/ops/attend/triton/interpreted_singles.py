"""A window and single keys by the kernels in Triton's interpreter; `test_in_interpreter.py` runs it."""

from __future__ import annotations

import pytest

from singles_laws import agree


@pytest.mark.parametrize(
    ("n_rows", "n_keys", "heads", "groups", "dim", "lists", "window", "marked"),
    [(17, 17, 2, 1, 8, 1, 1, True), (3, 11, 2, 2, 20, 2, 4, False)],
)
def test_the_kernels_compute_what_torch_computes(
    n_rows: int, n_keys: int, heads: int, groups: int, dim: int, lists: int, window: int, marked: bool
) -> None:
    agree(n_rows, n_keys, heads, groups, dim, lists=lists, window=window, marked=marked)
