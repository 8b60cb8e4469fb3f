"""`attend`: identities of its options, the choice of implementation, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.ops import attend, explain

B, R, S, H, G, D = 2, 3, 7, 4, 2, 8


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, R, H, D), (B, S, G, D), (B, S, G, D))
    q, k, v = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return q, k, v


ROWS = torch.tensor([[0, 3, 6], [2, 5, -1]])
EVERY_KEY = torch.arange(S).expand(B, R, G, S)
IDENTITIES: dict[str, dict[str, Any]] = {
    "all keys chosen": {"keys": EVERY_KEY},
    "no decay": {"log_decay": torch.zeros(B, S, H)},
    "no decay at any step": {"log_decay": torch.zeros(H)},
    "a window as long as the sequence": {"window": S},
    "sinks that cover everything": {"window": 1, "sinks": S},
    "nothing suppressed": {"directions": torch.full((H, 2, D), D**-0.5), "suppress": torch.zeros(B, R, H, 2)},
    "the default scale": {"scale": D**-0.5},
    "one list per kv head, all equal": {"rows": ROWS[:, None].expand(B, G, R)},
    "one shared list": {"rows": ROWS[:, None]},
    "int32 rows": {"rows": ROWS.int()},
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_option_at_its_identity_is_as_good_as_absent(name: str) -> None:
    q, k, v = tensors(torch.float64)
    given = {"rows": ROWS, **IDENTITIES[name]}
    given = {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in given.items()}
    assert torch.allclose(attend(q, k, v, **given), attend(q, k, v, rows=ROWS, impl="reference"), rtol=0, atol=1e-14)


CHANGES: dict[str, dict[str, Any]] = {
    "rows": {"rows": torch.tensor([[0, 3, 5], [2, 5, 6]])},
    "keys": {"keys": EVERY_KEY[..., 1:]},
    "log_decay": {"log_decay": torch.full((B, S, H), -1.0)},
    "window": {"window": 2},
    "sinks": {"window": 2, "sinks": 1},
    "directions and suppress": {"directions": torch.full((H, 1, D), D**-0.5), "suppress": torch.ones(B, R, H, 1)},
    "scale": {"scale": 1.0},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_result(name: str) -> None:
    q, k, v = tensors()
    without = {"window": 2} if name == "sinks" else {}
    assert not torch.allclose(
        attend(q, k, v, **{"rows": ROWS, **CHANGES[name]}), attend(q, k, v, **{"rows": ROWS, **without})
    )


def test_all_rows_and_no_options_is_dense_attention() -> None:
    _, k, v = tensors()
    q = torch.randn(B, S, H, D)
    want = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True)
    assert torch.equal(attend(q, k, v), want.transpose(1, 2))


def test_explain_names_the_implementation_and_the_reason() -> None:
    q, k, v = tensors()
    whole = torch.randn(B, S, H, D)
    assert explain(whole, k, v) == "dense: every row is taken and no option changes the scores"
    assert explain(q, k, v, rows=ROWS) == "gathered: not dense, because rows are given"
    assert explain(whole, k, v, window=3) == "gathered: not dense, because window is given"
    assert explain(q, k, v).startswith("gathered: not dense, because q has 3 rows")
    assert explain(q, k, v, keys=EVERY_KEY).startswith("reference: the only implementation for this call")
    assert explain(q, k, v, impl="reference") == "reference: asked for"


@pytest.mark.parametrize(
    "impl,options",
    [
        ("triton", {}),
        ("scattered", {}),
        ("gathered", {"keys": EVERY_KEY}),
        ("dense", {"rows": ROWS}),
        ("dense", {}),
        ("dense", {"window": 3}),
    ],
)
def test_an_implementation_that_cannot_run_the_call_is_refused(impl: str, options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=f"impl='{impl}'.*use impl="):
        attend(*tensors(), impl=impl, **options)


def test_decay_in_float16_goes_to_the_reference() -> None:
    q, k, v = (x.half() for x in tensors())
    assert explain(q, k, v, rows=ROWS, log_decay=torch.zeros(B, S, H)).startswith("reference")


BAD_TENSORS = {
    "q with 3 axes": ({"q": torch.randn(B, R, H * D)}, "q has shape .*expected 4 axes"),
    "v unlike k": ({"v": torch.randn(B, S, G, D + 1)}, "v has shape .*expected the shape of k"),
    "another batch size": ({"q": torch.randn(B + 1, R, H, D)}, "same batch size"),
    "heads that do not divide": ({"q": torch.randn(B, R, 3, D)}, "expected a multiple"),
    "mixed dtypes": ({"k": torch.randn(B, S, G, D).double()}, "bring q, k and v to one dtype"),
    "more rows than keys": ({"q": torch.randn(B, S + 1, H, D)}, "pass rows="),
}
BAD_OPTIONS = {
    "rows of another shape": ({"rows": ROWS[:, :2]}, "rows has shape"),
    "rows as floats": ({"rows": ROWS.float()}, "rows is torch.float32"),
    "rows unsorted": ({"rows": torch.tensor([[3, 0, 6], [2, 5, -1]])}, "not sorted"),
    "rows twice": ({"rows": torch.tensor([[3, 3, 6], [2, 5, -1]])}, "strictly ascending"),
    "rows with a gap": ({"rows": torch.tensor([[3, -1, 6], [2, 5, -1]])}, "not sorted"),
    "rows past the end": ({"rows": torch.tensor([[0, 3, S], [2, 5, -1]])}, "expected positions 0..6"),
    "rows below -1": ({"rows": torch.tensor([[0, 3, 6], [2, 5, -2]])}, "expected positions 0..6"),
    "keys of another shape": ({"keys": EVERY_KEY[:, :2]}, "keys has shape"),
    "keys past the end": ({"keys": EVERY_KEY + 1}, "expected token positions 0..6"),
    "starts below 0": ({"starts": torch.full((B, R), -1)}, "starts holds -1"),
    "starts that fall": ({"starts": torch.tensor([[1, 0, 0], [0, 0, 0]])}, "falls from one row to the next"),
    "a sequence that starts behind its row": ({"starts": torch.full((B, R), S)}, "no row's sequence is empty"),
    "log_decay per kv head": ({"log_decay": torch.zeros(B, S, G)}, r"expected \[B, S, H\]"),
    "log_decay above 0": ({"log_decay": torch.full((B, S, H), 0.1)}, "expected finite numbers <= 0"),
    "one log_decay per kv head": ({"log_decay": torch.zeros(G)}, r"or \[H\]"),
    "one log_decay above 0": ({"log_decay": torch.full((H,), 0.1)}, "expected finite numbers <= 0"),
    "log_decay of minus infinity": ({"log_decay": torch.full((B, S, H), -torch.inf)}, "expected finite"),
    "log_decay of integers": ({"log_decay": torch.zeros(B, S, H, dtype=torch.int64)}, "expected floats"),
    "directions of another width": (
        {"directions": torch.ones(H, 1, D + 1), "suppress": torch.ones(B, R, H, 1)},
        "directions has shape",
    ),
    "suppress for other directions": (
        {"directions": torch.ones(H, 2, D), "suppress": torch.ones(B, R, H, 1)},
        "suppress has shape",
    ),
    "directions of another length": (
        {"directions": torch.ones(H, 1, D), "suppress": torch.ones(B, R, H, 1)},
        "expected 1: a zero vector has no direction",
    ),
    "directions of zeros": (
        {"directions": torch.zeros(H, 1, D), "suppress": torch.ones(B, R, H, 1)},
        r"lengths 0\.\.0",
    ),
    "directions that are no numbers": (
        {"directions": torch.full((H, 1, D), torch.nan), "suppress": torch.ones(B, R, H, 1)},
        "lengths nan",
    ),
    "more directions than there are": (
        {"directions": torch.eye(D)[:1].repeat(H, D + 1, 1), "suppress": torch.ones(B, R, H, D + 1)},
        "expected 1 <= K <= D",
    ),
    "no directions": (
        {"directions": torch.ones(H, 0, D), "suppress": torch.ones(B, R, H, 0)},
        "pass neither directions nor suppress",
    ),
    "rows that are no tensor": ({"rows": [[0, 3, 6], [2, 5, -1]]}, "rows is a list; expected a torch.Tensor"),
    "suppress that is no number": (
        {"directions": torch.full((H, 1, D), D**-0.5), "suppress": torch.full((B, R, H, 1), torch.nan)},
        "suppress holds NaN",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_with_what_was_expected(name: str) -> None:
    change, message = BAD_TENSORS[name]
    q, k, v = tensors()
    given = {"q": q, "k": k, "v": v, **change}
    with pytest.raises(ShapeError, match=message):
        attend(given["q"], given["k"], given["v"])


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused_with_what_was_expected(name: str) -> None:
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ShapeError, match=message):
        attend(*tensors(), **options)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"window": 0}, "window=0"),
        ({"window": 2.5}, "window=2.5"),
        ({"window": 4, "sinks": -1}, "sinks=-1"),
        ({"sinks": 2}, "pass window="),
        ({"directions": torch.ones(H, 1, D)}, "directions is given without suppress"),
        ({"suppress": torch.ones(B, R, H, 1)}, "suppress is given without directions"),
        ({"impl": "gatherd"}, "did you mean 'gathered'"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": "0.5"}, "scale='0.5'"),
    ],
)
def test_settings_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attend(*tensors(), **options)


def test_a_dtype_that_nobody_computes_in_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"q is torch\.int64"):
        attend(*(x.long() for x in tensors()))


@pytest.mark.parametrize("impl", ["reference", "gathered"])
def test_autocast_computes_in_its_dtype_and_casts_what_differs(impl: str) -> None:
    q, k, v = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k.bfloat16(), v, rows=ROWS, impl=impl)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), rows=ROWS, impl=impl))


@pytest.mark.parametrize("impl", ["reference", "gathered"])
def test_an_empty_batch_and_no_rows_are_fine(impl: str) -> None:
    q, k, v = tensors()
    assert attend(q[:0], k[:0], v[:0], rows=ROWS[:0], impl=impl).shape == (0, R, H, D)
    assert attend(q[:, :0], k, v, impl=impl).shape == (B, 0, H, D)
