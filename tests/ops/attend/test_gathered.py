"""The fast path: the reference's meaning at every shape and route, and exact laws of causality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from oracles import assert_as_exact_as_eager, rows_of
from turnout.ops import attend
from turnout.ops.attend import gathered
from turnout.ops.compact import compact


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def agree(q: Tensor, k: Tensor, v: Tensor, *extra: Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    """gathered is as exact as the reference in the same dtype; `extra` is log_decay, if any."""

    def run(impl: str) -> Any:
        def function(q: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> Tensor:
            return attend(q, k, v, log_decay=extra[0] if extra else None, impl=impl, **options)

        return function

    assert_as_exact_as_eager(
        run("gathered"),
        run("reference"),
        (q, k, v, *extra),
        # The products that meet in one gradient: those of the scores and those of the values.
        reduction=2 * k.shape[1] * k.shape[3] * (1 + len(extra)),
        dtype=dtype,
    )


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    group_size, n_groups = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    n_batch, n_keys = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 17, 63, 65, 100, 129, 300]))
    taken = torch.rand(n_batch, n_keys, draw(st.sampled_from([1, n_groups])), generator=_generator(draw))
    window = draw(st.sampled_from([None, 1, 5, 64, 200]))
    return {
        "heads": (group_size * n_groups, n_groups),
        "width": draw(st.sampled_from([1, 8, 20])),
        "rows": rows_of(taken < draw(st.sampled_from([0.0, 0.03, 0.3, 0.9, 1.0]))),
        "n_keys": n_keys,
        "window": window,
        "sinks": 0 if window is None else draw(st.sampled_from([0, 1, 150])),
        "decay": draw(st.booleans()),
    }


def _generator(draw: st.DrawFn) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 1000)))


@given(calls())
def test_gathered_means_what_the_reference_means(call: dict[str, Any]) -> None:
    rows, (n_heads, n_groups), width = call["rows"], call["heads"], call["width"]
    n_batch, n_keys = rows.shape[0], call["n_keys"]
    q = randn(n_batch, rows.shape[-1], n_heads, width)
    k, v = (randn(n_batch, n_keys, n_groups, width, seed=seed) for seed in (1, 2))
    extra = [-0.1 * randn(n_batch, n_keys, n_heads, seed=3).abs()] if call["decay"] else []
    agree(q, k, v, *extra, rows=rows, window=call["window"], sinks=call["sinks"])


@pytest.mark.parametrize("n_keys", [1, 63, 65, 100, 257])
def test_taking_every_row_is_dense_causal_attention(n_keys: int) -> None:
    q, k, v = (randn(2, n_keys, 4, 16, seed=seed) for seed in range(3))
    rows = torch.arange(n_keys).expand(2, -1)
    assert_as_exact_as_eager(
        lambda q, k, v: attend(q, k, v, rows=rows, impl="gathered"),
        lambda q, k, v: scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        ).transpose(1, 2),
        (q, k, v),
        reduction=n_keys,
    )


@pytest.mark.parametrize("n_rows", [1, 3, 65])
def test_without_a_list_the_rows_are_the_last_ones(n_rows: int) -> None:
    q, k, v = randn(2, n_rows, 4, 8), randn(2, 100, 2, 8, seed=1), randn(2, 100, 2, 8, seed=2)
    agree(q, k, v)
    listed = attend(q, k, v, rows=torch.arange(100 - n_rows, 100).expand(2, -1), impl="reference")
    assert torch.equal(attend(q, k, v, impl="reference"), listed)


@pytest.mark.parametrize("rows", [[[63, 64, 99]], [[0]], [[99]], [[0, 1, 2]]])
def test_rows_at_the_ends_and_one_row_alone(rows: list[list[int]]) -> None:
    agree(
        randn(1, len(rows[0]), 2, 8), randn(1, 100, 2, 8, seed=1), randn(1, 100, 2, 8, seed=2), rows=torch.tensor(rows)
    )


@pytest.mark.parametrize("n_rows", [1, 40])
def test_no_rows_give_zeros_and_gradients_of_zero(n_rows: int) -> None:
    q, k, v = (randn(2, n, 2, 8).requires_grad_() for n in (n_rows, 50, 50))
    for window in (None, 4):
        out = attend(q, k, v, rows=torch.full((2, n_rows), -1), window=window, impl="gathered")
        assert out.shape == q.shape and not out.any()
        for grad in torch.autograd.grad(out.sum(), (q, k, v)):
            assert not grad.any()


def test_empty_slots_are_exactly_zero_whatever_q_holds_there() -> None:
    rows = torch.tensor([[0, 5, -1, -1], [-1, -1, -1, -1]])
    q, k, v = randn(2, 4, 2, 8), randn(2, 9, 2, 8, seed=1), randn(2, 9, 2, 8, seed=2)
    out = attend(q, k, v, rows=rows, impl="gathered")
    assert not out[rows < 0].any() and out[0, :2].all()
    loud = q.clone()
    loud[rows < 0] = 1e6
    assert torch.equal(attend(loud, k, v, rows=rows, impl="gathered"), out)


@settings(max_examples=30)
@given(st.data())
def test_later_keys_and_later_routes_do_not_change_an_earlier_row_by_one_bit(data: st.DataObject) -> None:
    n_keys = data.draw(st.sampled_from([40, 100, 300, 700, 1024]))
    cut = data.draw(st.integers(1, n_keys - 1))
    window, sinks = data.draw(st.sampled_from([(None, 0), (9, 0), (150, 3)]))
    n_heads, n_groups = data.draw(st.sampled_from([(4, 4), (4, 2)]))
    generator = _generator(data.draw)
    k, v = (torch.randn(2, n_keys, n_groups, 16, generator=generator) for _ in range(2))
    q_all = torch.randn(2, n_keys, n_heads, 16, generator=generator)
    before = torch.rand(2, n_keys, 1, generator=generator) < data.draw(st.sampled_from([0.05, 0.5, 1.0]))
    outs = []
    for later in (0.0, 0.1, 1.0):
        taken = before.clone()
        taken[:, cut:] = torch.rand(2, n_keys - cut, 1, generator=generator) < later
        k, v, q_all = k.clone(), v.clone(), q_all.clone()
        for changed in (k, v, q_all):
            changed[:, cut:] = torch.randn(changed[:, cut:].shape, generator=generator)
        rows = compact(taken, None).rows
        q = q_all.gather(1, rows[:, 0, :, None, None].clamp_min(0).expand(-1, -1, n_heads, 16))
        out = attend(q, k, v, rows=rows, window=window, sinks=sinks, impl="gathered")
        outs.append([out[b, rows[b, 0] >= 0][: int(before[b, :cut].sum())] for b in range(2)])
    for changed in outs[1:]:
        for first, second in zip(outs[0], changed, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("n_lists", [1, 2])
def test_the_fast_gradients_are_the_derivative(n_lists: int) -> None:
    rows = torch.tensor([[[0, 2, 3, -1]] * n_lists, [[1, 4, -1, -1]] * n_lists])
    q, k, v = randn(2, 4, 4, 3), randn(2, 5, 2, 3, seed=1), randn(2, 5, 2, 3, seed=2)
    inputs = [x.requires_grad_() for x in (q, k, v, -randn(2, 5, 4, seed=3).abs())]
    assert torch.autograd.gradcheck(
        lambda q, k, v, a: attend(q, k, v, rows=rows, log_decay=a, window=3, sinks=1, impl="gathered"), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [False, True])
def test_every_dtype_is_as_exact_as_the_reference_in_it(dtype: torch.dtype, decay: bool) -> None:
    rows = rows_of(torch.rand(2, 150, 2, generator=torch.Generator().manual_seed(0)) < 0.4)
    q, k, v = randn(2, rows.shape[-1], 4, 16), randn(2, 150, 2, 16, seed=1), randn(2, 150, 2, 16, seed=2)
    agree(q, k, v, *([-0.1 * randn(2, 150, 4, seed=3).abs()] if decay else []), rows=rows, dtype=dtype)


@pytest.mark.parametrize("path", ["_masked", "_scattered"])
@pytest.mark.parametrize("n_lists", [1, 2])
@pytest.mark.parametrize("decay", [False, True])
def test_the_paths_for_devices_that_must_not_synchronise_mean_the_same(
    path: str, n_lists: int, decay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "MASK_BYTES", 20_000)
    monkeypatch.setattr(gathered, "_chunked", getattr(gathered, path))
    rows = rows_of(torch.rand(2, 90, n_lists, generator=torch.Generator().manual_seed(0)) < 0.3)
    q, k, v = randn(2, rows.shape[-1], 4, 8), randn(2, 90, 2, 8, seed=1), randn(2, 90, 2, 8, seed=2)
    extra = [-0.1 * randn(2, 90, 4, seed=3).abs()] if decay else []
    agree(q, k, v, *extra, rows=rows)
    if path == "_masked":
        agree(q, k, v, *extra, rows=rows, window=7, sinks=3)


@pytest.mark.parametrize("window,sinks", [(1, 0), (16, 0), (200, 5)])
def test_a_window_over_all_positions_reads_only_its_neighbourhood(window: int, sinks: int) -> None:
    q, k, v = (randn(2, 300, 2, 8, seed=seed) for seed in range(3))
    agree(q, k, v, window=window, sinks=sinks)


def test_a_chunk_of_one_sequence_does_not_change_the_rows_of_another() -> None:
    k, v = (randn(3, 200, 2, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    rows = rows_of(torch.rand(3, 200, 1, generator=torch.Generator().manual_seed(5)) < 0.4)
    q = randn(3, rows.shape[-1], 2, 16, dtype=torch.float32)
    whole = attend(q, k, v, rows=rows)
    for b in range(3):
        assert torch.allclose(
            whole[b], attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], rows=rows[b : b + 1])[0], atol=1e-6
        )
