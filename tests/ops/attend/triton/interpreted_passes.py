"""The small kernels outside attention in Triton's interpreter; `test_in_interpreter.py` runs it."""

from __future__ import annotations

import pytest
import torch

from oracles import assert_as_exact_as_eager
from turnout.ops.attend.reference import suppress_directions
from turnout.ops.few_rows_kernel import launch
from turnout.ops.gate_kernel import gate_rows
from turnout.ops.inference_kernels import copies_rows, copy_rows, swiglu_forward
from turnout.ops.shorten import shorten_plainly
from turnout.ops.shorten_kernel import shorten_rows
from turnout.ops.suppress_kernel import cut_directions, uncut


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "shape",
    [(2, 9, 3, 4, 8), (1, 1, 1, 1, 1), (2, 65, 2, 3, 20), (1, 5, 1, 20, 24), (2, 9, 2, 7, 16), (1, 9, 2, 3, 200)],
)
def test_directions_are_removed_as_the_definition_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, rows, heads, k, dim = shape
    d = torch.nn.functional.normalize(draw(heads, k, dim, seed=1), dim=-1)
    inputs = [draw(batch, rows, heads, dim, seed=0), d, draw(batch, rows, heads, k, seed=2).sigmoid()]
    assert_as_exact_as_eager(cut_directions, suppress_directions, inputs, reduction=batch * rows * dim, dtype=dtype)


@pytest.mark.parametrize("dim", [16, 200])
def test_rows_without_a_position_count_as_zeros_and_delta_is_the_product_with_the_gradient(dim: int) -> None:
    o, g = draw(2, 20, 4, dim, seed=0).float(), draw(2, 20, 4, dim, seed=3).float()
    d = torch.nn.functional.normalize(draw(4, 2, dim, seed=1), dim=-1).float()
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
    assert error <= torch.finfo(torch.float32).eps * dim * by_head.abs().max()


class Shorten(torch.autograd.Function):
    """Both passes as autograd calls them on a GPU."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return shorten_rows(x, 4.0)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return shorten_rows(ctx.saved_tensors[0], 4.0, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 9, 3, 16), (1, 1, 1, 1), (2, 65, 2, 20)])
def test_vectors_are_shortened_as_the_definition_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # Norms on both sides of the cap, and an own layout: every second token of a longer sequence.
    x = draw(shape[0], 2 * shape[1], *shape[2:], seed=0)
    assert_as_exact_as_eager(
        lambda x: Shorten.apply(x[:, ::2]), lambda x: shorten_plainly(x[:, ::2], 4.0), [x], reduction=shape[-1],
        dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize("biased", [True, False])
def test_a_gate_of_one_pass_is_the_linear_layer(biased: bool) -> None:
    inputs = [draw(3, 7, 600, seed=0), draw(1, 600, seed=1), *([draw(1, seed=2)] if biased else [])]
    with torch.no_grad():
        single = [x.float() for x in inputs]
        want = torch.nn.functional.linear(*inputs)
        error = (gate_rows(single[0], single[1], single[2] if biased else None) - want).abs().max()
    assert error <= torch.finfo(torch.float32).eps * 600**0.5 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 9), (1, 1, 1), (7, 1030)])
def test_a_gated_hidden_layer_of_one_pass_is_silu_times_value(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    h = draw(*shape[:-1], 2 * shape[-1], seed=3)

    def eager(h: torch.Tensor) -> torch.Tensor:
        gate, value = h.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * value

    assert_as_exact_as_eager(swiglu_forward, eager, [h], reduction=2, dtype=dtype, grads=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "inputs", "sizes"), [(1, 16, (64, None)), (3, 80, (64, 128)), (16, 600, (128, 64))])
def test_products_of_few_rows_are_linear_layers_and_skip_what_nobody_asks_for(
    rows: int, inputs: int, sizes: tuple[int, int | None], dtype: torch.dtype
) -> None:
    given = [draw(rows, inputs, seed=0)] + [draw(n, inputs, seed=n) for n in sizes if n is not None]

    def both(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.nn.functional.linear(x, weight) for weight in weights], 1)

    for taken in (None, torch.arange(rows)[:, None] == rows - 1):

        def kernel(x: torch.Tensor, *weights: torch.Tensor, taken: torch.Tensor | None = taken) -> torch.Tensor:
            return launch(x, weights[0], weights[1] if len(weights) > 1 else None, taken).sum(0).to(x.dtype)

        assert_as_exact_as_eager(kernel, both, given, reduction=inputs, dtype=dtype, grads=False)
    # What nobody asks for is not even read.
    x, first, *second = (t.to(dtype) for t in given)
    made = launch(x, torch.full_like(first, float("nan")), *(second or [None]), torch.zeros(rows, 2) > 0).sum(0)
    assert not made[:, : len(first)].any()
    assert not made.isnan().any()


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (3, 9, 2, 600)])
def test_rows_are_copied_to_their_places_and_nowhere_else(shape: tuple[int, ...]) -> None:
    batch, tokens, heads, width = shape
    x = draw(batch, tokens, 2, heads, width, seed=0).float()[:, :, 1]
    cache = torch.full((batch, tokens + 6, heads, width), float("nan"))
    place = cache[:, 2 : 2 + tokens]
    assert copies_rows(x, place) and not copies_rows(x[:, :3], place[:, :3])
    copy_rows(x, place)
    assert torch.equal(place, x)
    assert bool(cache[:, :2].isnan().all()) and bool(cache[:, 2 + tokens :].isnan().all())
