"""Laws of every flow: shape, honesty about causality, and stacking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from oracles import assert_as_exact_as_eager
from turnout.errors import ConfigError
from turnout.layers.flow import FLOWS, Flow, FlowContext
from turnout.layers.flow.attention import StackedAttention

CONTEXT = FlowContext(width=16, length=40, heads=2)
SPECS = (
    "none", "shift", "shift:taps=4", "shift:split=true", "shift:taps=5,split=true", "shift:ahead=true", "attention",
    "attention:form=causal", "attention:form=causal,taps=2", "attention:form=sparse,window=8,globals=3",
    "attention:ablate=previous", "attention:ablate=no_value", "attention:ablate=uniform", "ssm", "ssm:form=both",
    "ssm:form=both,merge=sum", "perceiver:hubs=4", "perceiver:hubs=1", "mean", "mean:residual=false", "fourier",
    "fourier:residual=false",
)  # fmt: skip


def build(spec: str, seed: int = 0) -> Flow:
    torch.manual_seed(seed)
    return FLOWS.build(spec, context=CONTEXT).double()  # type: ignore[no-any-return]


def test_every_flow_is_covered() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(FLOWS.names())


@pytest.mark.parametrize("spec", SPECS)
def test_a_flow_says_truly_whether_it_is_causal(spec: str) -> None:
    flow, x = build(spec), torch.randn(2, 40, 16, dtype=torch.float64)
    y = flow(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[:, 25:] += 1.0
    same = torch.equal(flow(changed)[:, :25], y[:, :25])
    assert same == flow.causal


@pytest.mark.parametrize("spec", SPECS)
def test_stacked_copies_give_what_each_copy_gives(spec: str) -> None:
    flows = [build(spec, seed) for seed in range(3)]
    x = torch.randn(3, 2, 40, 16, dtype=torch.float64)
    params, buffers = stack_module_state(flows)  # type: ignore[arg-type]

    def one(p: Any, b: Any, inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(flows[0], (p, b), (inputs,))  # type: ignore[no-any-return]

    together = vmap(one, in_dims=(0 if params else None, 0 if buffers else None, 0))(params, buffers, x).detach()
    eps = torch.finfo(torch.float64).eps
    for i, flow in enumerate(flows):
        alone = flow(x[i]).detach()
        assert (together[i] - alone).abs().max() <= 40 * 16 * eps * max(1.0, float(alone.abs().max()))


def test_a_shift_of_two_taps_reads_the_predecessor_and_nothing_else() -> None:
    flow, x = build("shift"), torch.randn(1, 40, 16, dtype=torch.float64)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(flow(x)[0, 20].sum(), x)
    assert grad[0].abs().sum(-1).nonzero().flatten().tolist() == [19, 20]


def test_split_taps_carry_the_token_beside_those_before_it() -> None:
    flow, x = build("shift:taps=5,split=true"), torch.randn(1, 40, 16, dtype=torch.float64)
    y = flow(x)
    assert torch.equal(y[..., :8], x[..., :8])
    before = x[0, 16:20, 8:].sum(0) / 2
    # Five products, by zero or exact halves, are added one after the other.
    assert (y[0, 20, 8:] - before).abs().max() <= 5 * torch.finfo(x.dtype).eps * x.abs().sum(1).max()


def test_sparse_attention_sees_about_a_tenth_of_the_pairs_at_the_published_size() -> None:
    flow = FLOWS.build("attention:form=sparse", context=FlowContext(width=16, length=512, heads=2))
    share = float(flow.blocks[0].mix.allowed.float().mean())
    assert 0.10 < share < 0.13


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("shift:taps=0", "taps"), ("shift:taps=1,split=true", "split"), ("attention:form=ful", "full"),
        ("attention:ablate=values", "ablate"), ("ssm:form=two", "form"), ("perceiver:hubs=0", "hubs"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FLOWS.build(spec, context=CONTEXT)


def _products(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (score if allowed is None else score.masked_fill(~allowed, -torch.inf)).softmax(-1) @ v


@pytest.fixture
def rounded_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.usefixtures("rounded_products")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_that_may_be_rounded_is_as_exact_as_bfloat16(masked: bool, causal: bool) -> None:
    n_keys = 512
    past = torch.ones(n_keys, n_keys, dtype=torch.bool).tril()
    allowed = past.triu(-16) if masked and not causal else past if causal else None
    mask = None if allowed is None or (causal and not masked) else allowed.cuda()
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, n_keys, 32, generator=source, dtype=torch.float64) for _ in range(3)]

    def fast(*parts: Tensor) -> Tensor:
        stacked = vmap(lambda *t: StackedAttention.apply(*t, mask, causal))
        out: Tensor = stacked(*(part.float().cuda()[None] for part in parts))[0]
        assert out.dtype == torch.float32
        return out.to(parts[0])

    assert_as_exact_as_eager(fast, lambda *t: _products(*t, allowed), inputs, reduction=n_keys, dtype=torch.bfloat16)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_fused_attention_of_stacked_models_is_two_products(masked: bool, stacked: bool) -> None:
    lead, n_keys = (3, 2, 4), 10
    allowed = torch.ones(n_keys, n_keys, dtype=torch.bool).tril() if masked else None
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*lead, n_keys, 4, generator=source, dtype=torch.float64) for _ in range(3)]

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return StackedAttention.apply(q, k, v, allowed)

    def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.stack([one(*parts) for parts in zip(q, k, v, strict=True)])

    assert_as_exact_as_eager(
        vmap(one) if stacked else alone, lambda *t: _products(*t, allowed), inputs, reduction=n_keys
    )
