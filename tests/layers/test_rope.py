"""Rotary positions: lengths stay, scores hang on distances, and compact rows are rotated as in their place."""

from __future__ import annotations

import pytest
import torch

from routing_laws import assert_same
from turnout.layers.rope import TABLE_FROM, rotate


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_rotation_keeps_every_length_and_position_zero_keeps_the_vector() -> None:
    x = draw(2, 9, 3, 8)
    y = rotate(x, torch.arange(9))
    assert_same(y.square().sum(-1), x.square().sum(-1), terms=16)
    assert torch.equal(y[:, 0], x[:, 0])
    assert not torch.equal(y[:, 1], x[:, 1])


@pytest.mark.parametrize("shift", [1, 64, 5000])
def test_scores_depend_on_the_distance_alone(shift: int) -> None:
    q, k = draw(1, 5, 1, 8), draw(1, 5, 1, 8, seed=1)
    at = torch.arange(5)
    near = torch.einsum("brhd,bshd->rs", rotate(q, at), rotate(k, at))
    far = torch.einsum("brhd,bshd->rs", rotate(q, at + shift), rotate(k, at + shift))
    # An angle of n radians is known to n · eps.
    assert_same(far, near, terms=16 + 4 * (shift + 5))


def test_compact_rows_are_rotated_as_in_their_place() -> None:
    x = draw(2, 9, 3, 8)
    whole = rotate(x, torch.arange(9))
    rows = torch.tensor([[0, 3, 8], [1, 2, 5]])
    picked = torch.stack([x[b, rows[b]] for b in range(2)])
    assert torch.equal(rotate(picked, rows), torch.stack([whole[b, rows[b]] for b in range(2)]))
    by_head = torch.stack((rows, rows, rows), dim=-1)
    assert torch.equal(rotate(picked, by_head), rotate(picked, rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = draw(1, 70, 1, 8).to(dtype)
    y = rotate(x, torch.arange(70))
    exact = rotate(x.double(), torch.arange(70))
    assert y.dtype == dtype
    angle = 70 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    limit = (torch.finfo(dtype).eps + 2 * angle) * exact.abs().max() * 2
    assert (y.double() - exact).abs().max() <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_code_takes_the_angles_from_a_table_and_rotates_the_same(dtype: torch.dtype) -> None:
    x = draw(2, TABLE_FROM, 3, 8).to(dtype)
    rows = torch.stack([torch.arange(TABLE_FROM) * 2, torch.arange(TABLE_FROM) + 5])
    graphs: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(str(graph.graph))
        return graph

    compiled = torch.compile(rotate, backend=look, fullgraph=True)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    have, want = compiled(leaves[0], rows), rotate(leaves[1], rows)
    assert torch.equal(have, want)
    for y in (have, want):
        y.square().sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    assert torch.equal(leaves[0].grad, leaves[1].grad)
    assert "turnout.rotary_table" in graphs[0] and "target=cos" not in graphs[0]
    few = rotate(x[:, :1], rows[:, :1])
    assert torch.equal(compiled(x[:, :1], rows[:, :1]), few)
    assert "turnout.rotary_table" not in graphs[-1]
