"""Listed keys that are gathered: the reference's meaning, and no table of all pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracles import assert_as_exact_as_eager, rows_of
from turnout.errors import UnsupportedError
from turnout.ops import attend, explain
from turnout.ops.attend import listed

DIM = 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    n_batch, groups, size = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    n_keys, key_block = draw(st.sampled_from([1, 5, 33, 64])), draw(st.sampled_from([1, 3, 8]))
    source = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    rows = None
    if draw(st.booleans()):
        rows = rows_of(torch.rand(n_batch, n_keys, draw(st.sampled_from([1, groups])), generator=source) < 0.4)
    n_rows = n_keys if rows is None else rows.shape[-1]
    row_block = draw(st.sampled_from([1, 3]))
    shape = (n_batch, -(-n_rows // row_block), groups, draw(st.integers(1, 4)))
    options: dict[str, Any] = {"rows": rows, "key_block": key_block, "row_block": row_block}
    options["keys"] = torch.randint(-1, -(-n_keys // key_block), shape, generator=source)
    window = draw(st.sampled_from([None, 4]))
    options |= {"window": window, "sinks": 0 if window is None else draw(st.sampled_from([0, 2]))}
    if rows is None and draw(st.booleans()):
        options["starts"] = (torch.arange(n_keys) // 7 * 7).expand(n_batch, -1)
    tensors = [
        randn(n_batch, n_rows, groups * size, DIM),
        *(randn(n_batch, n_keys, groups, DIM, seed=s) for s in (1, 2)),
    ]
    return {"tensors": tensors, "options": options}


@given(calls(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_listed_means_what_the_reference_means(call: dict[str, Any], dtype: torch.dtype) -> None:
    def run(impl: str) -> Any:
        return lambda q, k, v: attend(q, k, v, impl=impl, **call["options"])

    n_keys = call["tensors"][1].shape[1]
    assert_as_exact_as_eager(run("listed"), run("reference"), call["tensors"], reduction=2 * n_keys * DIM, dtype=dtype)


def test_pieces_of_the_lists_give_what_all_of_them_give(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [randn(2, 33, 4, DIM), randn(2, 33, 2, DIM, seed=1), randn(2, 33, 2, DIM, seed=2)]
    keys = torch.randint(-1, 5, (2, 33, 2, 2), generator=torch.Generator().manual_seed(0))
    whole = attend(*tensors, keys=keys, key_block=8, impl="listed")
    monkeypatch.setattr(listed, "MOST_NUMBERS", 1)
    assert torch.equal(attend(*tensors, keys=keys, key_block=8, impl="listed"), whole)


def test_short_lists_are_gathered_and_no_tensor_holds_all_pairs() -> None:
    length = 2048
    q, k, v = (torch.randn(1, length, 2, 8, requires_grad=True) for _ in range(3))
    keys = (torch.arange(length)[:, None] // 16 - torch.arange(2)).clamp(min=-1)[None, :, None].expand(1, -1, 2, -1)
    assert explain(q, k, v, keys=keys, key_block=16).startswith("listed: a row reads at most 32 of 2048 keys")
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attend(q, k, v, keys=keys, key_block=16).sum().backward()
    # 2 heads, 32 keys of 8 numbers a row, against 2 heads and 2,048 keys a row.
    assert largest <= length * 2 * 32 * 8 < length * 2 * length


def test_what_is_not_listed_is_refused() -> None:
    q, k, v = (torch.randn(1, 5, 1, 4) for _ in range(3))
    with pytest.raises(UnsupportedError, match="because no keys are listed"):
        attend(q, k, v, impl="listed")
    with pytest.raises(UnsupportedError, match="because log_decay is given"):
        attend(q, k, v, keys=torch.zeros(1, 5, 1, 1, dtype=torch.int64), log_decay=torch.zeros(1), impl="listed")
