"""Documents packed into one sequence are what they are alone: outputs, decisions and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from routing_laws import VOCAB, assert_same, awake, decisions, terms_of, tiny
from turnout.errors import ShapeError, UnsupportedError
from turnout.models import CausalLM
from turnout.ops.conv import causal_conv
from turnout.ops.ema import causal_ema
from turnout.routers.mode import DENSE, SKIP, RoutingMode
from turnout.tasks.text import document_starts

SIZES = (5, 1, 40, 7, 32, 11)
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("mlp", {"granularity": "group"}),
    ("ema", {"positions": "rope", "form": "llama"}),
    ("threshold", {"layout": "RA"}),
    ("always", {"local": "window"}),
    ("linear", {"pattern": "window:size=4"}),
    ("linear", {"pattern": "sinks:size=4,sinks=2"}),
    ("ema", {"pattern": "forget"}),
    ("linear", {"layout": "AL", "positions": "rope"}),
]


def packed() -> tuple[Tensor, Tensor]:
    """Two sequences of documents of `SIZES`, and where each token's own begins."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCAB, (2, sum(SIZES)), generator=generator)
    firsts = torch.tensor([sum(SIZES[:i]) for i in range(len(SIZES))])
    tokens[:, firsts] = 0
    return tokens, document_starts(tokens, 0)


def with_starts(mode: RoutingMode, starts: Tensor) -> RoutingMode:
    return RoutingMode(skip=mode.skip, starts=starts)


@pytest.mark.parametrize("mode", [SKIP, DENSE], ids=["skip", "dense phase"])
@pytest.mark.parametrize(("router", "changes"), MODELS)
def test_packed_documents_are_what_they_are_alone(router: str, changes: dict[str, Any], mode: RoutingMode) -> None:
    model = awake(tiny(router, **changes))
    tokens, starts = packed()
    weights = torch.randn(2, sum(SIZES), VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = model(tokens, mode=with_starts(mode, starts))
    grads = gradients(model, (whole.logits * weights).sum())
    parts = [model(part, mode=mode) for part in tokens.split(SIZES, 1)]
    terms = terms_of(model.config, len(tokens[0]))
    assert_same(whole.logits, torch.cat([part.logits for part in parts], 1), terms=terms)
    for layer, taken in enumerate(decisions(whole)):
        assert torch.equal(taken, torch.cat([decisions(part)[layer] for part in parts], 1))
    total = sum((part.logits * w).sum() for part, w in zip(parts, weights.split(SIZES, 1), strict=True))
    assert isinstance(total, Tensor)
    for have, want in zip(grads, gradients(model, total), strict=True):
        # A gradient adds up every token of both sequences.
        assert_same(have, want, terms=terms * tokens.numel(), size=float(weights.abs().max()))


def gradients(model: CausalLM, loss: Tensor) -> list[Tensor]:
    wanted = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


# A learned decay is a difference of sums over the whole sequence, which round as what lies before makes them.
@pytest.mark.parametrize(("router", "changes"), [m for m in MODELS if m[1].get("pattern") != "forget"])
@torch.no_grad()
def test_another_document_changes_nothing_by_a_bit(router: str, changes: dict[str, Any]) -> None:
    model = awake(tiny(router, **changes))
    tokens, starts = packed()
    other = tokens.clone()
    second, third = sum(SIZES[:2]), sum(SIZES[:3])
    other[:, second + 1 : third] = 1 + other[:, second + 1 : third] % (VOCAB - 1)
    before, after = (model(t, mode=with_starts(DENSE, starts)).logits for t in (tokens, other))
    assert torch.equal(before[:, :second], after[:, :second]) and torch.equal(before[:, third:], after[:, third:])
    assert not torch.equal(before[:, second:third], after[:, second:third])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_and_average_begin_anew(dtype: torch.dtype) -> None:
    _, starts = packed()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, sum(SIZES), 6, generator=generator).to(dtype)
    weight = torch.randn(3, 5, generator=generator)
    alone = [(causal_conv(part, weight)[0], causal_ema(part, 0.9)[0]) for part in x.split(SIZES, 1)]
    for have, want in zip(
        (causal_conv(x, weight, starts=starts)[0], causal_ema(x, 0.9, starts=starts)[0]),
        (torch.cat(parts, 1) for parts in zip(*alone, strict=True)),
        strict=True,
    ):
        # Both sum in another order and round once more.
        assert_same(have, want, terms=2 + max(SIZES) * (dtype == torch.float32))


def test_what_cannot_keep_documents_apart_is_refused() -> None:
    tokens, starts = packed()
    for router, changes, match in (
        ("bloom", {}, "router of layer 0"),
        ("periodic", {}, "router of layer 0"),
        ("linear", {"local": "ssm"}, "local track of layer 0"),
        ("linear", {"directions": "prefix"}, "direction router"),
        ("linear", {"pattern": "dilated"}, "pattern"),
    ):
        with pytest.raises(UnsupportedError, match=match):
            awake(tiny(router, **changes))(tokens, mode=with_starts(SKIP, starts))
    model = awake(tiny("linear"))
    with pytest.raises(ShapeError, match="no state"), torch.no_grad():
        model(tokens, mode=with_starts(SKIP, starts), state=model.init_state(2, sum(SIZES)))
    with pytest.raises(ShapeError, match="one a token"):
        model(tokens, mode=with_starts(SKIP, starts[:, 1:]))
