"""The sliding window track against dense attention and against a brute mask."""

from __future__ import annotations

import pytest
import torch

from oracles import eager_attend
from routing_laws import assert_same
from turnout.errors import ConfigError
from turnout.layers.local.window import WindowTrack
from turnout.layers.rope import rotate


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("size", [1, 3, 12, 40])
def test_a_window_is_attention_under_a_band_mask(size: int, rope: bool) -> None:
    track = WindowTrack(16, 4, size=size, rope=rope).double()
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (4, 4)) for t in track.qkv(x).chunk(3, dim=-1))
    if rope:
        q, k = rotate(q, torch.arange(12)), rotate(k, torch.arange(12))
    distance = torch.arange(12)[:, None] - torch.arange(12)
    visible = ((distance >= 0) & (distance < size)).expand(2, 4, 12, 12)
    want = track.out(eager_attend(q, k, v, visible).flatten(-2))
    assert_same(track(x)[0], want, terms=4 * 16 + 3 * 12)


def test_counted_operations_count_the_short_rows_at_the_start() -> None:
    pairs = sum(min(t + 1, 5) for t in range(12))
    assert WindowTrack(16, 4, size=5).flops(12) == 12 * 8 * 16**2 + 4 * 16 * pairs


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="size=0; expected >= 1"):
        WindowTrack(16, 4, size=0)
    with pytest.raises(ConfigError, match=r"width=12, heads=4, rope=True; expected .*even head dim .*rope=false"):
        WindowTrack(12, 4)
    with pytest.raises(ConfigError, match=r"width=16, heads=3"):
        WindowTrack(16, 3, rope=False)
    WindowTrack(12, 4, rope=False)
