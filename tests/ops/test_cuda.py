"""On a GPU: the meaning of the reference, no synchronisation, and capture in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from oracles import assert_as_exact_as_eager, joined, scan_inputs
from turnout.layers.kv_cache import KVCache
from turnout.layers.rope import rotate
from turnout.layers.ssm import SelectiveSSM
from turnout.ops import attend, causal_conv, causal_ema, compact, explain
from turnout.ops.few_rows import few_rows
from turnout.ops.inference_kernels import swiglu_forward
from turnout.ops.scan import chunked_scan
from turnout.ops.scan_kernel import scan
from turnout.ops.shorten import shorten, shorten_plainly

pytestmark = pytest.mark.gpu
B, N, H, G, D = 2, 150, 4, 2, 16


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Anything that makes the host wait for the device raises in here; so does a copy of an input to the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cuda()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity", [10, 77, 150])
@pytest.mark.parametrize("n_lists", [1, G])
@pytest.mark.parametrize("window,sinks,decay", [(None, 0, False), (7, 2, False), (None, 0, True)])
def test_gathered_means_what_the_reference_means(
    dtype: torch.dtype, capacity: int, n_lists: int, window: int | None, sinks: int, decay: bool
) -> None:
    taken = torch.rand(B, N, n_lists, generator=torch.Generator().manual_seed(1)) < 0.3
    taken[0] = False
    rows = compact(taken.cuda(), capacity).rows
    extra = [-0.1 * randn(B, N, H, seed=4).abs()] if decay else []

    def run(impl: str, *inputs: Tensor) -> Tensor:
        q, k, v, *log_decay = inputs
        return attend(
            q, k, v, rows=rows, window=window, sinks=sinks, log_decay=log_decay[0] if log_decay else None, impl=impl
        )

    assert_as_exact_as_eager(
        lambda *inputs: run("gathered", *inputs),
        lambda *inputs: run("reference", *inputs),
        (randn(B, capacity, H, D, seed=1), randn(B, N, G, D, seed=2), randn(B, N, G, D, seed=3), *extra),
        reduction=2 * N * D * (1 + len(extra)),
        dtype=dtype,
    )


@pytest.mark.parametrize("n_kernels,n_taps", [(4, 64), (4, 16), (32, 16), (32, 64)])
def test_the_convolution_on_a_gpu_is_that_on_the_cpu(n_kernels: int, n_taps: int) -> None:
    x, weight = randn(B, 300, 32), randn(n_kernels, n_taps, seed=1)
    want, state = causal_conv(x.cpu(), weight.cpu())
    y, last = causal_conv(x, weight)
    assert torch.allclose(y.cpu(), want, rtol=0, atol=1e-11) and torch.equal(last.cpu(), state)


def step(gate: Tensor, q: Tensor, k: Tensor, v: Tensor, capacity: int, overflow: str) -> list[Tensor]:
    """Everything a routed layer runs, forward and backward."""
    rows = compact(gate > 0.5, capacity, overflow=overflow, gate=gate).rows  # type: ignore[arg-type]
    plain = attend(q, k, v, rows=rows)
    near = attend(q, k, v, rows=rows, window=9, sinks=2, log_decay=-gate.expand(B, N, H))
    last = attend(q, k, v, window=20)
    x = k.flatten(2)
    y = causal_ema(x, 0.9)[0] + causal_conv(x, x.new_ones(H, 40))[0] + causal_conv(x, x.new_ones(x.shape[2], 4))[0]
    return [plain, near, last, *torch.autograd.grad((plain + near + last).sum() + y.square().sum(), (q, k, v))]


@pytest.mark.parametrize("capacity,overflow", [(32, "earliest"), (140, "earliest"), (32, "confident")])
def test_nothing_waits_for_the_device_and_a_graph_replays_new_routes(capacity: int, overflow: str) -> None:
    gate = torch.rand(B, N, 1, device="cuda")
    q, k, v = (randn(B, n, h, D).float().requires_grad_() for n, h in ((capacity, H), (N, G), (N, G)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), no_synchronisation():
        for _ in range(2):
            step(gate, q, k, v, capacity, overflow)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(gate, q, k, v, capacity, overflow)
    gate.copy_(torch.rand(B, N, 1, device="cuda"))
    graph.replay()
    for replayed, eager in zip(captured, step(gate, q, k, v, capacity, overflow), strict=True):
        assert torch.allclose(replayed, eager, rtol=0, atol=1e-4)


def test_autocast_runs_in_bfloat16() -> None:
    q, k, v = (randn(B, N, H, D).float() for _ in range(3))
    with torch.autocast("cuda", torch.bfloat16):
        assert attend(q, k, v, window=9).dtype == torch.bfloat16
        assert explain(q, k, v).startswith("dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_rotates_and_convolves_in_one_pass_as_training_does(dtype: torch.dtype) -> None:
    x, weight, state = randn(B, N, H, D), randn(H * D, 4, seed=1), randn(B, 3, H * D, seed=2)
    rows = torch.stack([torch.arange(N) * 200, torch.arange(N) * 3]).cuda()

    def rotated(x: Tensor) -> Tensor:
        return rotate(x, rows)

    def convolved(x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        return causal_conv(x.flatten(2), weight, state)[0]

    def eagerly(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.enable_grad()(function)

    for function, inputs, terms in ((rotated, [x], 2), (convolved, [x, weight, state], 8)):
        with no_synchronisation():
            function(*(tensor.to(dtype) for tensor in inputs))
        assert_as_exact_as_eager(
            function, eagerly(function), inputs, reduction=terms, dtype=dtype, grads=False
        )  # fmt: skip
    with torch.no_grad():
        whole, last = causal_conv(x.to(dtype).flatten(2), weight.to(dtype))
        head, kept = causal_conv(x[:, :1].to(dtype).flatten(2), weight.to(dtype))
        tail, end = causal_conv(x[:, 1:].to(dtype).flatten(2), weight.to(dtype), kept)
    assert torch.equal(torch.cat([head, tail], 1), whole) and torch.equal(end, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads,dim", [(4, 128), (3, 20), (1, 1)])
def test_vectors_are_shortened_in_one_pass(heads: int, dim: int, dtype: torch.dtype) -> None:
    # A view of keys and values together, as the attention track hands it over.
    def of(call: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: call(x.unflatten(2, (2, heads))[:, :, 0], dim**0.5)

    inputs = [randn(B, N, 2 * heads, dim)]
    assert_as_exact_as_eager(of(shorten), of(shorten_plainly), inputs, reduction=dim, dtype=dtype)


@pytest.mark.parametrize("length", [1, 15, 100])
@pytest.mark.parametrize("n_states", [0, 1])
def test_the_scan_kernel_is_as_exact_as_the_chunked_products(length: int, n_states: int) -> None:
    inputs = scan_inputs(length, n_states)
    assert_as_exact_as_eager(
        lambda *some: joined(scan(*some)),
        lambda *some: joined(chunked_scan(*some)),
        [tensor.cuda() for tensor in inputs],
        reduction=5 * length * 16,
    )


def test_a_state_space_layer_trains_under_autocast() -> None:
    layer = SelectiveSSM(64).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = layer(randn(2, 40, 64).float())
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(2048, 2048), (2048, 4096), (5464, 2048), (96, 64)])
def test_products_of_a_step_are_those_of_linear_layers(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    x, first, second = randn(8, 1, inputs), randn(outputs, inputs, seed=1), randn(128, inputs, seed=2)
    taken = torch.arange(8, device="cuda")[:, None] == 3

    def both(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat(few_rows(x, first, second, taken=taken), -1)

    def eager(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, torch.cat([first, second]))

    assert_as_exact_as_eager(
        torch.no_grad()(both), eager, [x, first, second], reduction=inputs, dtype=dtype, grads=False
    )
    with torch.no_grad(), no_synchronisation():
        half = [t.to(dtype) for t in (x, first, second)]
        closed, rest = few_rows(*half, taken=torch.zeros_like(taken))
        _, same = few_rows(*half, taken=taken)
    assert not closed.any()
    assert torch.equal(rest, same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_is_gated_and_cached_in_one_pass(dtype: torch.dtype) -> None:
    h = randn(2, 37, 2 * 1000)

    def gated(h: Tensor) -> Tensor:
        gate, value = h.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * value

    assert_as_exact_as_eager(swiglu_forward, gated, [h], reduction=2, dtype=dtype, grads=False)
    made = randn(2, 37, 2, 3, 40).to(dtype)
    cache = KVCache(2, 50, 3, 40, device=torch.device("cuda"), dtype=dtype)
    with torch.no_grad():
        k, v = cache.append(made[:, :, 0], made[:, :, 1])
    assert torch.equal(k, made[:, :, 0]) and torch.equal(v, made[:, :, 1])
