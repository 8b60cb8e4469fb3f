from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.errors import ShapeError
from turnout.ops.scan import selective_scan


def step_by_step(x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """The recurrence, one token at a time."""
    h = torch.zeros(x.shape[0], x.shape[2], x.shape[3], write.shape[-1], dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        h = h * log_decay[:, t].exp()[..., None, None] + x[:, t][..., None] * write[:, t][:, None, None]
        out.append((h * read[:, t][:, None, None]).sum(-1))
    return torch.stack(out, dim=1)


def inputs(length: int, seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    shapes = ((2, length, 3, 4), (2, length, 3), (2, length, 5), (2, length, 5))
    x, decay, write, read = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes)
    return [x, -decay.abs(), write, read]


@settings(max_examples=12, deadline=None)
@given(length=st.sampled_from([1, 2, 15, 16, 17, 63, 65, 100]), chunk=st.sampled_from([1, 8, 16, 200]))
def test_parallel_scan_is_the_recurrence_with_gradients(length: int, chunk: int) -> None:
    assert_as_exact_as_eager(
        lambda *args: selective_scan(*args, chunk=chunk)[0], step_by_step, inputs(length), reduction=5 * length
    )


@pytest.mark.parametrize("sizes", [[1] * 37, [16, 21], [5, 31, 1], [37]])
def test_pieces_that_hand_on_their_state_are_the_whole(sizes: list[int]) -> None:
    whole = inputs(37)

    def in_pieces(*tensors: Tensor) -> Tensor:
        state, outs = None, []
        for piece in zip(*(tensor.split(sizes, dim=1) for tensor in tensors), strict=True):
            y, state = selective_scan(*piece, state=state, chunk=8)
            outs.append(y)
        return torch.cat(outs, dim=1)

    assert_as_exact_as_eager(in_pieces, step_by_step, whole, reduction=5 * 37)


def test_strong_decays_do_not_overflow() -> None:
    x, _, write, read = inputs(100)
    decay = torch.full((2, 100, 3), -80.0, dtype=torch.float64)
    y, _ = selective_scan(x, decay, write, read)
    assert torch.isfinite(y).all()


def test_future_tokens_do_not_change_past_outputs() -> None:
    x, decay, write, read = inputs(65)
    before, _ = selective_scan(x, decay, write, read)
    x[:, 40:] += 1.0
    write[:, 40:] -= 1.0
    assert torch.equal(selective_scan(x, decay, write, read)[0][:, :40], before[:, :40])


def test_shapes_that_do_not_fit_are_named() -> None:
    x, decay, write, read = inputs(8)
    with pytest.raises(ShapeError, match="log_decay"):
        selective_scan(x, decay[:, :7], write, read)
    with pytest.raises(ShapeError, match="write"):
        selective_scan(x, decay, write[:, :7], read)
