"""The chunked loss is the plain one: value, count of right answers, and every gradient."""

from __future__ import annotations

import pytest
import torch

from oracles import assert_as_exact_as_eager
from turnout.errors import ConfigError, ShapeError
from turnout.ops.linear_cross_entropy import linear_cross_entropy

GENERATOR = torch.Generator().manual_seed(0)
TARGETS = torch.randint(0, 37, (23,), generator=GENERATOR)
TARGETS[[0, 7, 22]] = -100


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight, bias), TARGETS)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_chunks_of_any_size_give_the_plain_loss_and_gradients(chunk: int, dtype: torch.dtype) -> None:
    inputs = [torch.randn(*shape, generator=GENERATOR, dtype=torch.float64) for shape in ((23, 8), (37, 8), (37,))]

    def fast(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(x, weight, bias, TARGETS, chunk=chunk).loss[None].to(x.dtype)

    assert_as_exact_as_eager(fast, plain, inputs, reduction=23 * 37, dtype=dtype)


def test_right_answers_and_targets_are_counted() -> None:
    x, weight = torch.randn(23, 8, generator=GENERATOR), torch.randn(37, 8, generator=GENERATOR)
    out = linear_cross_entropy(x, weight, None, TARGETS, chunk=6)
    best = (x @ weight.t()).argmax(-1)
    assert int(out.correct) == int((best == TARGETS).sum()) and int(out.targets) == 20
    nobody = linear_cross_entropy(x, weight, None, torch.full_like(TARGETS, -100), chunk=6)
    assert float(nobody.loss) == 0 and int(nobody.targets) == 0


def test_columns_that_fill_up_the_vocabulary_are_never_chosen_and_get_no_gradient() -> None:
    x = torch.randn(23, 8, generator=GENERATOR).bfloat16()
    # Every real logit is below the zeros of the columns that fill up.
    weight = (-x.mean(0) * 8).expand(37, 8).clone().requires_grad_()
    bias = torch.full((37,), -1000.0, dtype=torch.bfloat16, requires_grad=True)
    wanted = x @ weight.t() + bias
    assert (wanted < 0).all()
    out = linear_cross_entropy(x, weight, bias, TARGETS, chunk=5)
    out.loss.backward()
    uniform = torch.nn.functional.cross_entropy(wanted.detach().float(), TARGETS)
    assert float(out.loss.detach()) == pytest.approx(float(uniform), rel=torch.finfo(torch.bfloat16).eps)
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.shape == weight.shape and bias.grad.shape == bias.shape


def test_wrong_shapes_and_chunks_are_refused() -> None:
    x, weight = torch.zeros(23, 8), torch.zeros(37, 8)
    with pytest.raises(ConfigError, match="chunk=0"):
        linear_cross_entropy(x, weight, None, TARGETS, chunk=0)
    with pytest.raises(ShapeError, match=r"\[23, 8\]"):
        linear_cross_entropy(x, torch.zeros(37, 9), None, TARGETS, chunk=4)
