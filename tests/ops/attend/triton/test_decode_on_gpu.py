"""On a GPU: the meaning of the reference in every dtype and head dim, equal repeats, graphs that replay new routes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager
from turnout.models import CausalLM, DecodeStep, ModelConfig, RoutingConfig
from turnout.ops.attend.decode import decode_attend

pytestmark = pytest.mark.gpu
S = 700


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cuda()


def rows_of(*values: int) -> Tensor:
    return torch.tensor(values, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("dim", "heads", "groups"),
    [
        (32, 2, 2), (48, 8, 1), (64, 40, 2), (80, 2, 2), (96, 8, 1), (128, 2, 2), (128, 40, 2), (160, 8, 1),
        (192, 40, 2), (256, 2, 2), (256, 8, 1),
    ],
)  # fmt: skip
def test_every_dtype_head_dim_and_group_size(dtype: torch.dtype, dim: int, heads: int, groups: int) -> None:
    rows = rows_of(0, 699, -1, 63, 64, 351)
    assert_as_exact_as_eager(
        lambda q, k, v: decode_attend(q, k, v, rows, impl="triton"),
        lambda q, k, v: decode_attend(q, k, v, rows, impl="reference"),
        (randn(6, heads, dim, seed=0), randn(6, S, groups, dim, seed=1), randn(6, S, groups, dim, seed=2)),
        reduction=2 * S * dim,
        dtype=dtype,
        grads=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page", [0, 16, 128])
@pytest.mark.parametrize(
    "options", [{}, {"window": 100, "sinks": 5}, {"window": 1}, {"decay": True}, {"n": 3}], ids=str
)
def test_every_option(dtype: torch.dtype, page: int, options: dict[str, Any]) -> None:
    rows = torch.stack([rows_of(0, 639, -1, 63), rows_of(64, -1, -1, 351)], 1)
    n_keys, heads, groups, dim = 640, 4, 2, 64
    k, v = randn(4, n_keys, groups, dim, seed=1), randn(4, n_keys, groups, dim, seed=2)
    given: dict[str, Any] = {name: options[name] for name in ("window", "sinks") if name in options}
    if page:
        order = torch.randperm(4 * n_keys // page, generator=torch.Generator().manual_seed(0)).cuda()
        given["page_table"] = order.view(4, -1).to(torch.int32)
        pages = [torch.empty_like(t.reshape(-1, page, groups, dim)) for t in (k, v)]
        for paged, whole in zip(pages, (k, v), strict=True):
            paged[order] = whole.reshape(-1, page, groups, dim)
        k, v = pages
    if "decay" in options:
        given["total_decay"] = -randn(4, n_keys, heads, seed=3).abs().cumsum(1) / 50
    if "n" in options:
        given["directions"] = torch.nn.functional.normalize(randn(heads, 3, dim, seed=4), dim=-1)
        given["suppress"] = randn(4, heads, 3, seed=5)
    assert_as_exact_as_eager(
        lambda q, k, v: decode_attend(q, k, v, rows, impl="triton", **given),
        lambda q, k, v: decode_attend(q, k, v, rows, impl="reference", **given),
        (randn(4, heads, dim, seed=0), k, v),
        reduction=2 * n_keys * dim,
        dtype=dtype,
        grads=False,
    )


def test_one_graph_replays_any_lengths_and_routes_bit_for_bit() -> None:
    n_keys = 8192
    q, k, v = (
        torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((8, 16, 128), *[(8, n_keys, 4, 128)] * 2)
    )
    rows = torch.full((8,), n_keys - 1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        decode_attend(q, k, v, rows)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attend(q, k, v, rows)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows.copy_(torch.randint(-1, n_keys, (8,), generator=generator) * (torch.rand(8, generator=generator) < 0.4))
        rows[0] = -1
        graph.replay()
        first = out.clone()
        graph.replay()
        assert torch.equal(out, first) and torch.equal(first, decode_attend(q, k, v, rows))
        assert not bool(first[0].any()) and bool(first.isfinite().all())


@pytest.mark.parametrize(
    ("granularity", "local"), [("token", "conv"), ("group", "conv"), ("token", "window:size=8")]
)  # fmt: skip
def test_the_captured_step_of_a_model_equals_its_eager_steps_and_decides_for_itself(
    granularity: str, local: str
) -> None:
    routing = RoutingConfig(router="ema", granularity=granularity)
    config = ModelConfig(
        layers=2, width=128, heads=4, kv_heads=2, local=local, positions="rope", form="llama", routing=routing
    )  # fmt: skip
    model = CausalLM(config, vocab=50).cuda().eval()
    tokens = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0)).cuda()
    for block in model.blocks:
        for p in block.mixer.router.parameters():
            p.data.normal_().mul_(p.ndim > 1)
    with torch.no_grad():
        state = model.init_state(3, 40)
        model(tokens[:, :7], state=state)
        eager = model.init_state(3, 40)
        model(tokens[:, :7], state=eager)
        step = DecodeStep(model, state)
        opened = 0
        for t in range(7, 40):
            have, want = step(tokens[:, t : t + 1]), model(tokens[:, t : t + 1], state=eager)
            assert torch.equal(have.logits, want.logits)
            opened += sum(int(route.taken.sum()) for route in have.routes if route is not None)
        slots = 33 * 3 * 2 * config.routing_groups
        assert 0 < opened < slots
