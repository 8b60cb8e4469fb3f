"""Rows of `top_blocks` read exactly the blocks that a loop over rows, heads and blocks would choose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.layers.reading import read
from turnout.routers.pattern.reach import Reach, TopBlocks

HEADS, GROUPS, WIDTH = 4, 2, 8


def inputs(n_rows: int, n_keys: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(n_keys)
    sizes = ((n_rows, HEADS), (n_keys, GROUPS), (n_keys, GROUPS))
    return [torch.randn(2, n, heads, WIDTH, generator=source, dtype=torch.float64) for n, heads in sizes]


def by_hand(q: Tensor, k: Tensor, v: Tensor, at: list[int], size: int, keep: int) -> Tensor:
    out = torch.zeros_like(q)
    per = HEADS // GROUPS
    for b in range(q.shape[0]):
        for r, t in enumerate(at):
            for g in range(GROUPS):
                heads = range(g * per, (g + 1) * per)
                own = t // size
                asked = sum(q[b, r, h].detach() for h in heads)
                fits = [float(asked @ k[b, n * size : (n + 1) * size, g].detach().mean(0)) for n in range(own)]
                best = sorted(range(own), key=lambda n: -fits[n])[:keep]
                keys = [s for n in sorted([*best, own]) for s in range(n * size, (n + 1) * size) if s <= t]
                for h in heads:
                    weight = (k[b, keys, g] @ q[b, r, h] * WIDTH**-0.5).softmax(0)
                    out[b, r, h] = weight @ v[b, keys, g]
    return out


@pytest.mark.parametrize(("size", "keep"), [(3, 1), (4, 2), (2, 50)])
@pytest.mark.parametrize("at", [None, [0, 3, 4, 11, 16], [16]])
def test_rows_read_their_own_block_and_the_best_before_it(size: int, keep: int, at: list[int] | None) -> None:
    n_keys = 17
    places = list(range(n_keys)) if at is None else at
    rows = None if at is None else torch.tensor(at).expand(2, -1)
    reach = Reach(blocks=TopBlocks(size=size, keep=keep))
    assert_as_exact_as_eager(
        lambda q, k, v: read(q, k, v, reach, rows=rows),
        lambda q, k, v: by_hand(q, k, v, places, size, keep),
        inputs(len(places), n_keys), dtype=torch.float64, reduction=n_keys + WIDTH,
    )  # fmt: skip


def test_the_one_block_that_answers_is_found_among_many() -> None:
    q, k, v = inputs(1, 64)
    k *= 0.01
    k[:, 20:24] = q.unflatten(2, (GROUPS, -1)).sum(3)
    only = torch.tensor([*range(20, 24), *range(60, 64)])
    assert_as_exact_as_eager(
        lambda q, k, v: read(q, k, v, Reach(blocks=TopBlocks(size=4, keep=1))),
        lambda q, k, v: read(q, k[:, only], v[:, only], Reach()),
        [q, k, v], dtype=torch.float64, reduction=8 + WIDTH,
    )  # fmt: skip
