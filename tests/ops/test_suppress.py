"""Removing directions in few products is the definition: forward, every gradient, every dtype."""

from __future__ import annotations

import pytest
import torch

from oracles import assert_as_exact_as_eager
from turnout.ops.attend import attend
from turnout.ops.attend.reference import suppress_directions
from turnout.ops.suppress import suppress


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(batch: int = 2, tokens: int = 9, heads: int = 3, k: int = 4, dim: int = 8) -> list[torch.Tensor]:
    d = torch.nn.functional.normalize(draw(heads, k, dim, seed=1), dim=-1)
    return [draw(batch, tokens, heads, dim, seed=0), d, draw(batch, tokens, heads, k, seed=2).sigmoid()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 9, 3, 4, 8), (1, 1, 1, 1, 1), (3, 65, 2, 5, 16)])
def test_it_is_as_exact_as_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_as_exact_as_eager(
        suppress, suppress_directions, inputs(*shape), reduction=shape[0] * shape[1] * shape[4], dtype=dtype
    )


def test_heads_may_come_first_in_memory_as_torchs_attention_leaves_them() -> None:
    o, d, r = inputs()
    strided = o.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(suppress(strided, d, r), suppress(o, d, r))


def test_gradients_pass_the_numerical_check() -> None:
    assert torch.autograd.gradcheck(suppress, [x.requires_grad_() for x in inputs(1, 3, 2, 2, 3)])


def test_what_does_not_change_over_tokens_gets_the_gradient_of_all_of_them() -> None:
    o, d, r = inputs()
    one = r[:1, :1].clone().requires_grad_()
    suppress(o, d, one.expand_as(r)).square().sum().backward()
    other = r[:1, :1].clone().requires_grad_()
    suppress_directions(o, d, other.expand_as(r)).square().sum().backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, other.grad)


def test_dense_attention_uses_it_and_autocast_leaves_it_alone() -> None:
    q, d, r = inputs()
    want = attend(q, q, q, directions=d, suppress=r, impl="reference")
    have = attend(q, q, q, directions=d, suppress=r, impl="dense")
    torch.testing.assert_close(have, want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(suppress(q, d, r), suppress_directions(q, d, r))
