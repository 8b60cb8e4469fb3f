"""Compaction: the list that torch.nonzero would give, in a fixed number of slots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from turnout.errors import ConfigError, ShapeError
from turnout.ops import compact


@st.composite
def gates(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 63, 65, 100])), draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    # Two digits, so that there are ties.
    gate = (torch.rand(shape, generator=generator) * 100).round() / 100
    return gate, gate > draw(st.sampled_from([-1.0, 0.1, 0.5, 0.9, 1.0]))


@given(gates())
def test_without_a_capacity_it_lists_every_position_like_nonzero(drawn: tuple[Tensor, Tensor]) -> None:
    _, taken = drawn
    rows, count, dropped = compact(taken, None)
    assert rows.dtype == count.dtype == dropped.dtype == torch.int64
    assert rows.shape[-1] == max(1, int(taken.sum(1).max()))
    assert torch.equal(count, taken.sum(1)) and not dropped.any()
    for b in range(taken.shape[0]):
        for g in range(taken.shape[2]):
            n = int(count[b, g])
            assert torch.equal(rows[b, g, :n], taken[b, :, g].nonzero()[:, 0])
            assert (rows[b, g, n:] == -1).all()


@given(gates(), st.sampled_from([1, 3, 50, 200]))
def test_earliest_keeps_the_first_rows_and_counts_the_rest(drawn: tuple[Tensor, Tensor], capacity: int) -> None:
    _, taken = drawn
    whole, cut = compact(taken, None), compact(taken, capacity)
    n = min(capacity, whole.rows.shape[-1])
    assert cut.rows.shape[-1] == capacity
    assert torch.equal(cut.rows[..., :n], whole.rows[..., :n]) and (cut.rows[..., n:] == -1).all()
    assert torch.equal(cut.count, whole.count.clamp_max(capacity))
    assert torch.equal(cut.count + cut.dropped, whole.count)


@given(gates(), st.sampled_from([1, 3, 50, 200]))
def test_confident_keeps_the_highest_gates_in_order_of_position(drawn: tuple[Tensor, Tensor], capacity: int) -> None:
    gate, taken = drawn
    rows, count, dropped = compact(taken, capacity, overflow="confident", gate=gate)
    for b in range(taken.shape[0]):
        for g in range(taken.shape[2]):
            candidates = taken[b, :, g].nonzero()[:, 0].tolist()
            best = sorted(sorted(candidates, key=lambda t: -float(gate[b, t, g]))[:capacity])
            assert rows[b, g].tolist() == best + [-1] * (capacity - len(best))
            assert int(count[b, g]) == len(best) and int(dropped[b, g]) == len(candidates) - len(best)


def test_earliest_is_causal_when_it_overflows_and_confident_is_not() -> None:
    taken = torch.ones(1, 4, 1, dtype=torch.bool)
    gate = torch.tensor([0.6, 0.7, 0.8, 0.9])[None, :, None]
    assert compact(taken, 2, gate=gate).rows.tolist() == [[[0, 1]]]
    assert compact(taken, 2, overflow="confident", gate=gate).rows.tolist() == [[[2, 3]]]


def test_raise_says_which_capacity_is_needed() -> None:
    taken = torch.ones(2, 5, 1, dtype=torch.bool)
    assert compact(taken, 5, overflow="raise").count.tolist() == [[5], [5]]
    with pytest.raises(ConfigError, match=r"capacity=4 but a sequence has 5 rows.*raise the capacity to 5"):
        compact(taken, 4, overflow="raise")


def test_nothing_taken_gives_one_empty_slot() -> None:
    rows, count, dropped = compact(torch.zeros(2, 3, 1, dtype=torch.bool), None)
    assert rows.tolist() == [[[-1]], [[-1]]] and not count.any() and not dropped.any()


def test_no_gradient_is_needed_of_the_gate() -> None:
    gate = torch.rand(1, 4, 1, requires_grad=True)
    assert not compact(gate > 0.5, 2, overflow="confident", gate=gate).rows.requires_grad


def test_bad_arguments_are_refused() -> None:
    taken = torch.ones(1, 4, 1, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"expected bool \[B, T, G\]"):
        compact(taken.float(), 2)
    with pytest.raises(ShapeError, match=r"expected bool \[B, T, G\]"):
        compact(taken[..., 0], 2)
    with pytest.raises(ShapeError, match=r"gate is .*expected floats with the shape of taken"):
        compact(taken, 2, overflow="confident", gate=torch.rand(1, 3, 1))
    with pytest.raises(ConfigError, match="capacity=0"):
        compact(taken, 0)
    with pytest.raises(ConfigError, match="did you mean 'earliest'"):
        compact(taken, 2, overflow="earlyest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs gate="):
        compact(taken, 2, overflow="confident")
