"""The attention track: rows taken are computed as they are in the whole, whatever the grouping."""

from __future__ import annotations

import pytest
import torch

from routing_laws import assert_same
from turnout.errors import ConfigError, UnsupportedError
from turnout.layers.attention import AttentionTrack

WIDTH, HEADS = 16, 4


def track(kv_heads: int, *, rope: bool, bias: bool) -> AttentionTrack:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AttentionTrack(WIDTH, HEADS, kv_heads, rope=rope, bias=bias).double()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_taken_equal_the_same_rows_of_the_whole(kv_heads: int, rope: bool, bias: bool, grouped: bool) -> None:
    attention = track(kv_heads, rope=rope, bias=bias)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 13, WIDTH, generator=generator, dtype=torch.float64)
    groups = kv_heads if grouped else 1
    rows = torch.rand(2, groups, 13, generator=generator).argsort(-1)[..., :6].sort(-1).values
    rows[0, 0, -2:] = -1
    k, v = attention.keys_values(x, None)
    whole = attention.whole(x, k, v, impl="auto").unflatten(2, (groups, -1))
    index = rows.clamp(min=0)
    x_rows = torch.stack([torch.stack([x[b, i] for i in index[b]]) for b in range(2)])
    have = attention.taken(x_rows, k, v, rows, impl="auto")
    for b in range(2):
        for n in range(groups):
            want = whole[b, index[b, n], n].flatten(-2) * (rows[b, n] >= 0)[:, None]
            assert_same(have[b, n], want, terms=4 * WIDTH + 3 * 13)
    # Wo group by group sums to Wo of all heads.
    o = whole.transpose(1, 2).flatten(-2)
    full = torch.nn.functional.linear(whole.flatten(2), attention.out.weight)
    assert_same(attention.project(o).sum(1), full, terms=WIDTH)


def test_an_implementation_that_cannot_run_is_refused_and_never_replaced() -> None:
    attention = track(2, rope=False, bias=True)
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    k, v = attention.keys_values(x, None)
    for impl in ("reference", "gathered", "dense", "auto"):
        attention.whole(x, k, v, impl=impl)
    with pytest.raises(UnsupportedError, match="triton"):
        attention.whole(x, k, v, impl="triton")
    with pytest.raises(UnsupportedError, match="rows are given"):
        attention.taken(x[:, None, :2], k, v, torch.tensor([[[0, 1]]]), impl="dense")


@pytest.mark.parametrize(
    ("sizes", "rope", "message"),
    [
        ((16, 3, 3), False, r"width=16, heads=3, kv_heads=3; expected heads to divide width"),
        ((16, 4, 3), False, r"kv_heads=3; expected .*kv_heads to divide heads"),
        ((12, 4, 4), True, r"head dim 3 is odd; rotary positions need an even one"),
    ],
)
def test_impossible_heads_are_refused(sizes: tuple[int, int, int], rope: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionTrack(*sizes, rope=rope, bias=True)
