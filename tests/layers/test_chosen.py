"""A window and chosen keys, against softmax attention under the mask that a loop over pairs makes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager, rows_of
from turnout.layers.chosen import keys_of_buckets, near_and_chosen
from turnout.routers.pattern.reach import Buckets

HEADS, GROUPS, DIM = 4, 2, 4
MARK = torch.linspace(-1, 1, HEADS, dtype=torch.float64)


def inputs(n_rows: int, n_keys: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(n_keys)
    sizes = ((n_rows, HEADS), (n_keys, GROUPS), (n_keys, GROUPS))
    return [torch.randn(2, n, heads, DIM, generator=source, dtype=torch.float64) for n, heads in sizes]


def keys_of(n_rows: int, n_keys: int, lists: int, count: int = 3) -> Tensor:
    """Distinct positions, some of them in the window or ahead of the row, and empty slots."""
    source = torch.Generator().manual_seed(7)
    drawn = torch.rand(2, n_rows, lists, n_keys, generator=source).argsort(-1)[..., :count]
    return drawn.masked_fill(torch.rand(drawn.shape, generator=source) < 0.3, -1)


def masked(q: Tensor, k: Tensor, v: Tensor, mark: Tensor, keys: Tensor, window: int, at: Tensor) -> Tensor:
    """Rows at [B, G, R]."""
    marked = torch.zeros(2, HEADS, q.shape[1], k.shape[1], dtype=torch.bool)
    visible = torch.zeros(2, HEADS, q.shape[1], k.shape[1], dtype=torch.bool)
    keys = keys.expand(2, -1, GROUPS, -1)
    for b in range(2):
        for h in range(HEADS):
            g = h // (HEADS // GROUPS)
            for r, t in enumerate(at[b, g].tolist()):
                if t < 0:
                    continue
                visible[b, h, r, max(0, t - window + 1) : t + 1] = True
                for s in keys[b, r, g].tolist():
                    if 0 <= s <= t:
                        marked[b, h, r, s] = not visible[b, h, r, s]
                        visible[b, h, r, s] = True
    k, v = (x.repeat_interleave(HEADS // GROUPS, 2) for x in (k, v))
    score = torch.einsum("brhd,bshd->bhrs", q, k) * DIM**-0.5 + marked * mark[:, None, None]
    weight = score.masked_fill(~visible, -math.inf).softmax(-1).masked_fill(~visible, 0.0)
    return torch.einsum("bhrs,bshd->brhd", weight, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, 3, 20, 60])
@pytest.mark.parametrize(("n_rows", "n_keys"), [(1, 1), (1, 33), (7, 33), (50, 50)])
@pytest.mark.parametrize("lists", [1, GROUPS])
def test_a_row_reads_its_window_and_its_keys_once_each(
    dtype: torch.dtype, window: int, n_rows: int, n_keys: int, lists: int
) -> None:
    keys = keys_of(n_rows, n_keys, lists)
    at = torch.arange(n_keys - n_rows, n_keys).expand(2, GROUPS, -1)
    assert_as_exact_as_eager(
        lambda q, k, v, mark: near_and_chosen(q, k, v, keys, window, None, mark=mark),
        lambda q, k, v, mark: masked(q, k, v, mark, keys, window, at),
        [*inputs(n_rows, n_keys), MARK], reduction=2 * n_keys * DIM, dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("lists", [1, GROUPS])
@pytest.mark.parametrize("row_lists", [1, GROUPS])
def test_listed_rows_read_the_same(lists: int, row_lists: int) -> None:
    source = torch.Generator().manual_seed(3)
    rows = rows_of(torch.rand(2, 33, row_lists, generator=source) < 0.3)
    rows = rows if rows.dim() == 3 else rows[:, None]
    keys = keys_of(rows.shape[-1], 33, lists)
    assert_as_exact_as_eager(
        lambda q, k, v, mark: near_and_chosen(q, k, v, keys, 4, rows, mark=mark),
        lambda q, k, v, mark: masked(q, k, v, mark, keys, 4, rows.expand(-1, GROUPS, -1)),
        [*inputs(rows.shape[-1], 33), MARK], reduction=2 * 33 * DIM, dtype=torch.float32,
    )  # fmt: skip


def test_keys_picked_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, keys = inputs(20, 33), keys_of(20, 33, GROUPS)
    whole = near_and_chosen(*tensors, keys, 4, None)
    monkeypatch.setattr("turnout.layers.chosen.MOST_PICKED", 500)
    assert torch.equal(near_and_chosen(*tensors, keys, 4, None), whole)


@pytest.mark.parametrize("shift", [0, 1])
def test_buckets_hold_the_latest_keys_of_the_query_s_axis(shift: int) -> None:
    q, k, _ = inputs(20, 30)
    axes = torch.linalg.qr(torch.randn(2, DIM, DIM, generator=torch.Generator().manual_seed(1)))[0]
    at = torch.arange(10, 30)[None, None]
    have = keys_of_buckets(q, k, Buckets(axes=axes, keep=2, shift=shift), 3, at)

    def bucket(x: Tensor, table: int) -> int:
        along = x.float() @ axes[table]
        return int(torch.cat([along, -along]).argmax())

    for b in range(2):
        for r in range(20):
            for g in range(GROUPS):
                ask = q[b, r].unflatten(0, (GROUPS, -1))[g].float().sum(0)
                want: set[int] = set()
                for table in range(2):
                    mine = bucket(ask, table)
                    last = range(shift, 10 + r - 3 + 1)
                    want |= set([s for s in reversed(last) if bucket(k[b, s - shift, g], table) == mine][:2])
                found = [s for s in have[b, r, g].tolist() if s >= 0]
                assert len(found) == len(set(found)) and set(found) == want


def test_memory_grows_with_the_window_and_not_with_the_square_of_the_length() -> None:
    length, largest = 4096, 0
    q, k, v = (torch.randn(1, length, 1, 4, requires_grad=True) for _ in range(3))
    keys = (torch.arange(length)[:, None] - torch.tensor([100, 200])).clamp(min=-1)[None, :, None]

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        near_and_chosen(q, k, v, keys, 16, None).sum().backward()
    # A chunk of 16 rows sees 31 keys, and each row two more.
    assert largest <= length * (31 + 2) < length * length
