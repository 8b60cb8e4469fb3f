"""Laws of every registered local track."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from routing_laws import assert_same, lively, local_tracks
from turnout.layers.local import LOCAL_TRACKS

WIDTH, HEADS, LENGTH = 16, 4, 13
# Projections, and scores, softmax and average or a kernel.
TERMS = 4 * WIDTH + 3 * LENGTH


def build(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LOCAL_TRACKS.build(lively(name), width=WIDTH, heads=HEADS).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", local_tracks())
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [5, 1, 7], [2, 11], [12, 1], [LENGTH]])
def test_pieces_with_state_equal_the_whole_sequence(name: str, sizes: list[int]) -> None:
    track, x = build(name), draw(2, LENGTH, WIDTH)
    whole, _ = track(x)
    state, outs = track.init_state(2, device=x.device, dtype=x.dtype), []
    for piece in x.split(sizes, dim=1):
        y, state = track(piece, state)
        outs.append(y)
    assert_same(torch.cat(outs, dim=1), whole, terms=TERMS)


@pytest.mark.parametrize("name", local_tracks())
def test_future_tokens_do_not_change_past_outputs(name: str) -> None:
    track, x = build(name), draw(2, LENGTH, WIDTH)
    before, _ = track(x)
    for place in range(1, LENGTH):
        changed = torch.cat((x[:, :place], draw(2, LENGTH - place, WIDTH, seed=place)), dim=1)
        after, _ = track(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


@pytest.mark.parametrize("name", local_tracks())
def test_a_sequence_does_not_depend_on_its_batch(name: str) -> None:
    track, x = build(name), draw(3, LENGTH, WIDTH)
    assert_same(track(x[1:2])[0], track(x)[0][1:2], terms=TERMS)


@pytest.mark.parametrize("name", local_tracks())
def test_every_weight_gets_a_gradient(name: str) -> None:
    track = build(name)
    track(draw(2, LENGTH, WIDTH))[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in track.parameters())


@pytest.mark.parametrize("name", local_tracks())
def test_the_state_stays_finite_in_size(name: str) -> None:
    track, x = build(name), draw(1, 1, WIDTH)
    state = track.init_state(1, device=x.device, dtype=x.dtype)
    sizes = []
    for _ in range(20):
        _, state = track(x, state)
        parts = state if isinstance(state, tuple) else (state,)
        sizes.append(sum(part.numel() for part in parts if isinstance(part, Tensor)))
    assert sizes[-1] == sizes[-5]
