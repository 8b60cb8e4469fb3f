"""`decode_attend` is `attend` for one token a sequence: paged or not; what does not fit is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.ops import attend
from turnout.ops.attend.decode import decode_attend

B, S, H, G, D = 4, 29, 4, 2, 6


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [[28, -1, 0, 13], [[3, -1], [-1, -1], [28, 0], [7, 8]]], ids=["tokens", "groups"])
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"window": 5, "sinks": 2}, {"decay": True}, {"directions": 2}])
@pytest.mark.parametrize("page", [0, 10])
def test_one_token_of_decode_is_one_row_of_attend(rows: Any, options: dict[str, Any], page: int) -> None:
    at = torch.tensor(rows)
    plain: dict[str, Any] = {name: options[name] for name in ("window", "sinks") if name in options}
    step = dict(plain)
    if "decay" in options:
        plain["log_decay"] = -randn(B, S, H, seed=3).abs()
        step["total_decay"] = torch.cat(
            [plain["log_decay"].cumsum(1), randn(B, -S % page if page else 0, H, seed=9)], 1
        )
    if "directions" in options:
        plain["directions"] = torch.nn.functional.normalize(randn(H, 2, D, seed=4), dim=-1)
        suppress = randn(B, H, 2, seed=5)
        step |= {"directions": plain["directions"], "suppress": suppress}
        plain["suppress"] = suppress[:, None]

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lists = at if at.dim() == 2 else at[:, None]
        for b, last in enumerate(lists.max(1).values.tolist()):
            k, v = k.clone(), v.clone()
            k[b, last + 1 :], v[b, last + 1 :] = float("nan"), float("nan")
        if page:
            k, v = (torch.nn.functional.pad(t, (0, 0, 0, 0, 0, -S % page)) for t in (k, v))
            table = torch.randperm(B * k.shape[1] // page).view(B, -1).to(torch.int32)
            pages = []
            for t in (k, v):
                pages.append(t.new_empty(table.numel(), page, G, D))
                pages[-1][table.long().flatten()] = t.unflatten(1, (-1, page)).flatten(0, 1)
            return decode_attend(q, *pages, at, page_table=table, **step)
        return decode_attend(q, k, v, at, **step)

    assert_as_exact_as_eager(
        fast,
        lambda q, k, v: attend(q[:, None], k, v, rows=at[..., None], impl="reference", **plain)[:, 0],
        (randn(B, H, D, seed=0), randn(B, S, G, D, seed=1), randn(B, S, G, D, seed=2)),
        reduction=2 * S * D,
        grads=False,
    )


GOOD = {"q": (2, 4, 8), "k": (2, 9, 2, 8)}


def call(**changes: Any) -> Tensor:
    q = torch.zeros(changes.pop("q", GOOD["q"]))
    k = torch.zeros(changes.pop("k", GOOD["k"]))
    rows = changes.pop("rows", torch.tensor([8, -1]))
    return decode_attend(q, k, changes.pop("v", k), rows, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": (2, 1, 4, 8)}, ShapeError, r"expected q \[B, H, D\]"),
        ({"v": torch.zeros(2, 8, 2, 8)}, ShapeError, "k and v of one shape"),
        ({"v": torch.zeros(2, 9, 2, 8, dtype=torch.float64)}, ShapeError, "one dtype and device"),
        ({"q": (2, 3, 8)}, ShapeError, "whole number of query heads"),
        ({"q": (2, 4, 6)}, ShapeError, "one head dim"),
        ({"rows": torch.tensor([8, 9])}, ShapeError, "expected -1 .local. or a position 0..8"),
        ({"rows": torch.tensor([8, -2])}, ShapeError, r"rows holds -2..8"),
        ({"rows": torch.tensor([1.0, 2.0])}, ShapeError, "position of the new token"),
        ({"rows": torch.tensor([1, 2, 3])}, ShapeError, r"\[B, 1\] = \[2, 1\] or \[B, G\] = \[2, 2\]"),
        ({"k": (3, 9, 2, 8)}, ShapeError, "pass page_table= if k and v are pages"),
        ({"page_table": torch.zeros(2, 1)}, ShapeError, "expected int32"),
        ({"page_table": torch.tensor([[2], [0]], dtype=torch.int32)}, ShapeError, "page outside 0..1"),
        ({"window": 0}, ConfigError, "window=None or >= 1"),
        ({"sinks": 2}, ConfigError, "only with a window"),
        ({"total_decay": torch.zeros(2, 8, 4)}, ShapeError, r"\[B, S, H\] = \[2, 9, 4\]"),
        ({"directions": torch.zeros(4, 1, 8)}, ConfigError, "belong together"),
        ({"directions": torch.zeros(4, 1, 8), "suppress": torch.zeros(2, 4, 2)}, ShapeError, r"\[H, K, D\]"),
        ({"keys": torch.zeros(1)}, UnsupportedError, "impl='reference'"),
        ({"impl": "tritn"}, ConfigError, "did you mean 'triton'"),
        ({"impl": "triton", "q": (2, 4, 300), "k": (2, 9, 2, 300)}, UnsupportedError, "head dims up to 256"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**changes)


def test_the_kernel_refuses_what_it_does_not_compute() -> None:
    q, k = torch.zeros(2, 4, 8, dtype=torch.float64), torch.zeros(2, 9, 2, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"not in torch\.float64; use impl='reference'"):
        decode_attend(q, k, k, torch.tensor([0, 0]), impl="triton")
    q, k = q.float().requires_grad_(), k.float()
    with pytest.raises(UnsupportedError, match="no backward"):
        decode_attend(q, k, k, torch.tensor([0, 0]), impl="triton")


def test_a_page_that_is_not_read_may_be_unmapped() -> None:
    table = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int32)
    k, rows = torch.randn(2, 9, 2, 8), torch.tensor([8, -1])
    have = decode_attend(torch.ones(2, 4, 8), k, k, rows, page_table=table)
    assert torch.equal(have, decode_attend(torch.ones(2, 4, 8), k, k, rows, page_table=table.clamp(0, 1)))
    assert bool(have[0].any()) and not bool(have[1].any())
