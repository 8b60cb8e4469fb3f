"""The small kernels outside attention in Triton's interpreter; `test_in_interpreter.py` runs it."""

from __future__ import annotations

import pytest
import torch

from oracles import assert_as_exact_as_eager
from turnout.ops.attend.reference import suppress_directions
from turnout.ops.gate_kernel import gate_rows
from turnout.ops.suppress_kernel import cut_directions, uncut


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 9, 3, 4, 8), (1, 1, 1, 1, 1), (2, 65, 2, 3, 20), (1, 5, 1, 20, 24)])
def test_directions_are_removed_as_the_definition_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, rows, heads, k, dim = shape
    d = torch.nn.functional.normalize(draw(heads, k, dim, seed=1), dim=-1)
    inputs = [draw(batch, rows, heads, dim, seed=0), d, draw(batch, rows, heads, k, seed=2).sigmoid()]
    assert_as_exact_as_eager(cut_directions, suppress_directions, inputs, reduction=batch * rows * dim, dtype=dtype)


def test_rows_without_a_position_count_as_zeros_and_delta_is_the_product_with_the_gradient() -> None:
    o, g = draw(2, 20, 4, 16, seed=0).float(), draw(2, 20, 4, 16, seed=3).float()
    d = torch.nn.functional.normalize(draw(4, 2, 16, seed=1), dim=-1).float()
    r = draw(2, 20, 4, 2, seed=2).sigmoid().float()
    out, along = cut_directions(o, d, r), (o[..., None, :] * d).sum(-1)
    # Two lists, of 13 and 20 rows; what the empty slots hold is not to be seen.
    rows = torch.arange(20).expand(2, 2, 20).clone()
    rows[:, 0, 13:] = -1
    live = (rows >= 0).transpose(1, 2).repeat_interleave(2, dim=2)[..., None]
    want = uncut(torch.where(live, out, 0), torch.where(live, g, 0), d, r, torch.where(live, along, 0), pack=2)
    nan = float("nan")
    have = uncut(torch.where(live, out, nan), torch.where(live, g, nan), d, r, along, rows=rows, pack=2)
    for one, other in zip(have, want, strict=True):
        assert torch.equal(one, other)
    by_head = (o * want[0]).sum(-1).unflatten(2, (2, 2)).transpose(1, 2).flatten(2)
    packed = live[..., 0].unflatten(2, (2, 2)).transpose(1, 2).flatten(2)
    error = (want[3] - by_head)[packed].abs().max()
    assert error <= torch.finfo(torch.float32).eps * 16 * by_head.abs().max()


@pytest.mark.parametrize("biased", [True, False])
def test_a_gate_of_one_pass_is_the_linear_layer(biased: bool) -> None:
    inputs = [draw(3, 7, 600, seed=0), draw(1, 600, seed=1), *([draw(1, seed=2)] if biased else [])]
    with torch.no_grad():
        single = [x.float() for x in inputs]
        want = torch.nn.functional.linear(*inputs)
        error = (gate_rows(single[0], single[1], single[2] if biased else None) - want).abs().max()
    assert error <= torch.finfo(torch.float32).eps * 600**0.5 * want.abs().max()
