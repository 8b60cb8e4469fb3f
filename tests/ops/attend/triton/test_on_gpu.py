"""The compiled kernels on a GPU: exact in every dtype and head dim, deterministic, one graph, no growth in memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from oracles import assert_as_exact_as_eager, rows_of
from turnout.errors import ShapeError
from turnout.ops import attend, compact, explain
from turnout.ops.attend.call import check_call
from turnout.ops.attend.reference import suppress_directions
from turnout.ops.attend.triton.configs import LOW, TABLES, Tile, choose_plan
from turnout.ops.suppress import suppress as remove

pytestmark = pytest.mark.gpu
HIGH = TABLES["hopper"]["forward"][2, 128][-1]
B, S, H, G = 2, 387, 4, 2
LEARNED = ("log_decay", "directions", "suppress")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cuda()


def some_rows(share: float, n_lists: int = 1, n_keys: int = S, spare: int = 3) -> Tensor:
    taken = torch.rand(B, n_keys, n_lists, generator=torch.Generator().manual_seed(1)) < share
    return pad(rows_of(taken), (0, spare), value=-1).cuda()


def agree(
    n_rows: int, *, width: int = 64, n_keys: int = S, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> None:
    """The kernels are as exact as the reference in the same dtype, forward and for every gradient."""
    names = [name for name in LEARNED if name in options]
    learned = [options.pop(name) for name in names]

    def run(impl: str) -> Callable[..., Tensor]:
        return lambda q, k, v, *extra: attend(
            q, k, v, **options, **dict(zip(names, extra, strict=True)), impl=impl
        )  # fmt: skip

    inputs = (randn(B, n_rows, H, width), *(randn(B, n_keys, G, width, seed=s) for s in (1, 2)), *learned)
    reduction = 2 * n_keys * width * (1 + len(learned))
    assert_as_exact_as_eager(run("triton"), run("reference"), inputs, reduction=reduction, dtype=dtype)


@pytest.mark.parametrize(
    "width,share,dtype",
    [
        *((width, 0.5, torch.bfloat16) for width in (32, 64, 80, 128, 256)),
        *((width, 0.05, torch.bfloat16) for width in (64, 128, 256)),
        (128, 0.5, torch.float16),
    ],
)
def test_half_precision_at_every_head_dim(width: int, share: float, dtype: torch.dtype) -> None:
    rows = some_rows(share)
    agree(rows.shape[-1], width=width, rows=rows, dtype=dtype)


@pytest.mark.parametrize("heads,n_lists", [((2, 2), 1), ((4, 2), 2), ((8, 1), 1)])
@pytest.mark.parametrize("n_rows,n_keys,splits", [(1, 77, 1), (130, 4100, 1), (700, 4100, 3), (64, 1000, 2), (0, 9, 1)])
@pytest.mark.parametrize("tile", [LOW, HIGH])
def test_the_specialised_kernel(
    tile: Tile, n_rows: int, n_keys: int, splits: int, heads: tuple[int, int], n_lists: int
) -> None:
    rows = some_rows(n_rows / n_keys, n_lists, n_keys)
    plan = replace(choose_plan("hopper", 2, 128, 999, lean=False), forward=replace(tile, splits=splits))
    absent = dict.fromkeys(("keys", "log_decay", "window", "directions", "suppress", "scale"))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from turnout.ops.attend.triton.op import triton_attend

        return triton_attend(check_call(q, k, v, rows=rows, sinks=0, **absent), plan)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, rows=rows, impl="reference")

    inputs = (randn(B, rows.shape[-1], heads[0], 128), *(randn(B, n_keys, heads[1], 128, seed=s) for s in (1, 2)))
    assert_as_exact_as_eager(run, reference, inputs, reduction=2 * n_keys * 128, dtype=torch.bfloat16)


def test_programs_of_the_specialised_kernel_that_take_many_tiles() -> None:
    # 2 x 64 heads x 9 tiles: every multiprocessor takes several, of all lengths and some empty.
    rows = some_rows(0.5, 1, 2100, spare=100)
    inputs = (randn(B, rows.shape[-1], 64, 128), *(randn(B, 2100, 64, 128, seed=s) for s in (1, 2)))
    tokens, empty = [x.bfloat16() for x in inputs], (rows[:, 0] if rows.dim() == 3 else rows) < 0
    out = attend(*tokens, rows=rows, impl="triton")
    want = attend(*tokens, rows=rows, impl="gathered")
    assert not out[empty].any()
    # Both round their weights and outputs to bfloat16.
    assert (out - want).abs().max() <= 8 * torch.finfo(torch.bfloat16).eps * want.abs().max()


# With few heads keys are split and the merge removes directions; with many the kernel does, and dQ's restores them.
@pytest.mark.parametrize("n_rows,heads,k", [(100, 4, 3), (1500, 4, 16), (777, 40, 4), (777, 40, 3), (777, 40, 16)])
def test_directions_of_heads_of_their_own(n_rows: int, heads: int, k: int) -> None:
    n_keys = max(n_rows, 1000)
    directions = normalize(randn(heads, k, 128, seed=4), dim=-1)
    inputs = (randn(B, n_rows, heads, 128), *(randn(B, n_keys, heads, 128, seed=s) for s in (1, 2)), directions)

    def run(impl: str) -> Callable[..., Tensor]:
        return lambda q, k, v, d, r: attend(q, k, v, directions=d, suppress=r, impl=impl)

    inputs = (*inputs, randn(B, n_rows, heads, k, seed=5).sigmoid())
    reduction = 2 * n_keys * 128 * B
    assert_as_exact_as_eager(run("triton"), run("reference"), inputs, reduction=reduction, dtype=torch.bfloat16)


def test_directions_of_programs_that_take_many_tiles() -> None:
    # 2 x 64 heads x 17 tiles: directions and amounts of one tile take the place of those of the tile before.
    q, k, v = (randn(B, 2100, 64, 128, seed=s).bfloat16() for s in range(3))
    cut = {
        "directions": normalize(randn(64, 4, 128, seed=4), dim=-1).bfloat16(),
        "suppress": randn(B, 2100, 64, 4, seed=5).sigmoid().bfloat16(),
    }
    out, want = (attend(q, k, v, **cut, impl=impl) for impl in ("triton", "gathered"))
    # Both round their weights, outputs and what they remove to bfloat16.
    assert (out - want).abs().max() <= 16 * torch.finfo(torch.bfloat16).eps * want.abs().max()


@pytest.mark.parametrize("width,k", [(64, 4), (80, 1), (128, 20), (256, 4)])
def test_directions_of_grouped_heads_and_of_other_head_dims(width: int, k: int) -> None:
    rows = some_rows(0.5)
    directions = normalize(randn(H, k, width, seed=4), dim=-1)
    suppress = randn(B, rows.shape[-1], H, k, seed=5).sigmoid()
    agree(rows.shape[-1], width=width, rows=rows, directions=directions, suppress=suppress)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(2, 300, 3, 4, 64), (1, 1000, 12, 4, 128), (2, 77, 2, 20, 96), (1, 65, 1, 1, 256), (1, 999, 2, 7, 128)]
)
def test_directions_removed_behind_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n_batch, n_rows, heads, k, width = shape
    directions = normalize(randn(heads, k, width, seed=1), dim=-1)
    inputs = (randn(n_batch, n_rows, heads, width), directions, randn(n_batch, n_rows, heads, k, seed=2).sigmoid())
    assert_as_exact_as_eager(remove, suppress_directions, inputs, reduction=n_batch * n_rows * width, dtype=dtype)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_single_precision(width: int) -> None:
    rows = some_rows(0.3)
    agree(rows.shape[-1], width=width, rows=rows, dtype=torch.float32)


@pytest.mark.parametrize("n_keys", [1, 63, 65, 1000, 2049])
def test_odd_lengths_and_lists_per_kv_head(n_keys: int) -> None:
    rows = some_rows(0.4 if n_keys > 1 else 1.0, G, n_keys)
    agree(rows.shape[-1], n_keys=n_keys, rows=rows)


@pytest.mark.parametrize("pattern", ["none", "one", "last", "first", "every"])
def test_no_rows_one_row_rows_at_the_ends_and_every_row(pattern: str) -> None:
    chosen = {"none": [], "one": [200], "last": range(S - 100, S), "first": range(100), "every": range(S)}[pattern]
    rows = torch.tensor([*chosen, *[-1] * 5]).expand(B, -1).cuda()
    agree(rows.shape[-1], rows=rows)


@pytest.mark.parametrize("n_rows", [1, 100, S])
def test_without_a_list_the_rows_are_the_last_ones(n_rows: int) -> None:
    agree(n_rows)


def starts_of(rows: Tensor) -> Tensor:
    bounds = torch.tensor([0, 7, 130, 131, 300], device=rows.device)
    return bounds[(torch.bucketize(rows, bounds, right=True) - 1).clamp_min(0)]


def options_of(name: str, rows: Tensor, width: int) -> dict[str, Any]:
    n_rows = rows.shape[-1]
    keys = torch.randint(-1, -(-S // 64), (B, -(-n_rows // 16), G, 3), generator=torch.Generator().manual_seed(4))
    every: dict[str, dict[str, Any]] = {
        "window": {"window": 50},
        "sinks": {"window": 50, "sinks": 5},
        "decay": {"log_decay": -0.1 * randn(B, S, H, seed=3).abs()},
        "directions": {
            "directions": normalize(randn(H, 2, width, seed=4), dim=-1),
            "suppress": randn(B, n_rows, H, 2, seed=5).abs(),
        },
        "starts": {"starts": starts_of(rows)},
        "blocks": {"keys": keys.cuda(), "key_block": 64, "row_block": 16},
    }
    if name == "everything":
        return {key: value for one in every.values() for key, value in one.items()}
    return every[name]


@pytest.mark.parametrize("name", ["window", "sinks", "decay", "directions", "starts", "blocks", "everything"])
def test_every_option_with_its_gradients(name: str) -> None:
    rows = some_rows(0.4)
    agree(rows.shape[-1], rows=rows, width=128, **options_of(name, rows, 128))


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("name", ["sinks", "decay", "everything"])
def test_options_in_single_precision(name: str, width: int) -> None:
    rows = some_rows(0.4)
    agree(rows.shape[-1], rows=rows, width=width, dtype=torch.float32, **options_of(name, rows, width))


# Enough blocks of keys in the longer one that dK/dV does not split its rows.
@pytest.mark.parametrize("n_keys", [S, 2300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("key_block,row_block", [(16, 1), (128, 100), (32, 64)])
def test_blocks_of_keys_and_rows_that_are_walked_in_parts(
    key_block: int, row_block: int, width: int, dtype: torch.dtype, n_keys: int
) -> None:
    rows = some_rows(0.6, n_keys=n_keys)
    n_rows = rows.shape[-1]
    shape = (B, -(-n_rows // row_block), G, 3)
    keys = torch.randint(-1, -(-n_keys // key_block), shape, generator=torch.Generator().manual_seed(4)).cuda()
    blocks = {"keys": keys, "key_block": key_block, "row_block": row_block}
    agree(n_rows, n_keys=n_keys, rows=rows, width=width, dtype=dtype, **blocks)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["decay", "rates", "starts", "window", "decay and starts", "rates and window"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_options_in_the_specialised_kernel(name: str, width: int, share: float) -> None:
    n_keys = 1100
    rows = some_rows(share, G, n_keys) if share < 1 else None
    n_rows = n_keys if rows is None else rows.shape[-1]
    at = torch.arange(n_keys, device="cuda").expand(B, -1) if rows is None else rows
    every: dict[str, Any] = {
        "decay": {"log_decay": -0.1 * randn(B, n_keys, H, seed=3).abs()},
        "rates": {"log_decay": -torch.tensor([0.0, 0.01, 0.3, 4.0], device="cuda")},
        "starts": {"starts": (at // 300 * 300).clamp(min=0)},
        "window": {"window": 150},
    }
    options = {key: value for one in name.split(" and ") for key, value in every[one].items()}
    learned = [options.pop("log_decay")] if "decay" in name else []

    def run(impl: str) -> Callable[..., Tensor]:
        return lambda q, k, v, *decay: attend(
            q, k, v, rows=rows, **options, **({"log_decay": decay[0]} if decay else {}), impl=impl
        )

    inputs = (randn(B, n_rows, H, width), *(randn(B, n_keys, G, width, seed=s) for s in (1, 2)), *learned)
    reduction = 2 * n_keys * width * (1 + len(learned))
    assert_as_exact_as_eager(run("triton"), run("reference"), inputs, reduction=reduction, dtype=torch.bfloat16)


def test_values_are_checked_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = leaves(3)
    rows = torch.tensor([5, 4, 9], device="cuda").expand(B, -1)
    monkeypatch.setattr(importlib.import_module("turnout.ops.attend.call"), "CHECKS_VALUES", True)
    with pytest.raises(ShapeError, match="rows is not sorted"):
        attend(q, k, v, rows=rows)


def step(gate: Tensor, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    rows = compact(gate > 0.5, q.shape[1], gate=gate).rows
    out = attend(q, k, v, rows=rows, impl="triton")
    return [out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]


def leaves(n_rows: int, n_keys: int = S, width: int = 64) -> list[Tensor]:
    return [
        randn(B, n, h, width, seed=h).bfloat16().requires_grad_() for n, h in ((n_rows, H), (n_keys, G), (n_keys, G))
    ]


def gates(seed: int = 0, n_keys: int = S) -> Tensor:
    return torch.rand(B, n_keys, 1, generator=torch.Generator().manual_seed(seed)).cuda()


def test_repeated_runs_agree_bit_for_bit() -> None:
    inputs = leaves(300, 2000)
    first = step(gates(0, 2000), *inputs)
    for _ in range(3):
        again = step(gates(0, 2000), *inputs)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_nothing_waits_for_the_device() -> None:
    inputs, gate = leaves(100), gates()
    step(gate, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(gate, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_other_counts_and_lengths_compile_nothing() -> None:
    from turnout.ops.attend.triton.backward import dkdv_kernel, dq_kernel
    from turnout.ops.attend.triton.forward import forward_kernel

    def n_compiled() -> int:
        caches = (kernel.device_caches for kernel in (forward_kernel, dq_kernel, dkdv_kernel))
        return sum(len(one[0]) for cache in caches for one in cache.values())

    step(gates(0, 4096), *leaves(1024, 4096))
    before = n_compiled()
    for seed, n_keys in enumerate((4096, 4097, 4111, 5000)):
        step(gates(seed, n_keys), *leaves(1024 + seed, n_keys))
    assert n_compiled() == before


def test_a_graph_replays_new_routes() -> None:
    inputs, gate = leaves(200), gates()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(gate, *inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(gate, *inputs)
    gate.copy_(gates(5))
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, step(gate, *inputs), strict=True))


def test_one_compiled_graph_serves_all_counts() -> None:
    compiled = torch.compile(
        lambda gate, q, k, v: attend(q, k, v, rows=compact(gate > 0.5, 200, gate=gate).rows), fullgraph=True
    )
    inputs = leaves(200)
    for seed in range(3):
        with torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            out = compiled(gates(seed), *inputs)
        want = step(gates(seed), *inputs)
        assert torch.equal(out, want[0])
        grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
        assert all(torch.equal(x, y) for x, y in zip(grads, want[1:], strict=True))


def test_the_compaction_kernel_lists_what_torch_lists() -> None:
    for n_tokens, capacity, n_groups in ((1, 1, 1), (63, 100, 2), (70000, 1000, 1), (5000, 5000, 3)):
        gate = torch.rand(B, n_tokens, n_groups, generator=torch.Generator().manual_seed(0))
        gate[gate > 0.9] = torch.nan
        want = compact(gate > 0.4, capacity, gate=gate)
        have = compact((gate > 0.4).cuda(), capacity, gate=gate.cuda())
        assert all(torch.equal(x.cpu(), y) for x, y in zip(have, want, strict=True))


def test_forward_and_backward_need_little_more_than_their_tensors() -> None:
    n_keys, n_heads, width = 65536, 16, 128
    n_rows = n_keys // 4
    q, k, v = (torch.randn(1, n, n_heads, width, device="cuda", dtype=torch.bfloat16) for n in (n_rows, n_keys, n_keys))
    tensors = [x.requires_grad_() for x in (q, k, v)]
    rows = torch.arange(0, n_keys, 4, device="cuda")[None]
    torch.cuda.synchronize()
    # q, k, v and their gradients, o and its gradient.
    needed = 2 * sum(x.numel() * x.element_size() for x in (q, k, v, q))
    torch.cuda.reset_peak_memory_stats()
    others = torch.cuda.memory_allocated() - sum(x.numel() * x.element_size() for x in (q, k, v))
    out = attend(q, k, v, rows=rows, impl="triton")
    torch.autograd.grad(out, tensors, torch.ones_like(out))
    assert torch.cuda.max_memory_allocated() - others <= 1.3 * needed


def test_explain_says_which_row_of_the_table_decided() -> None:
    q, k, v = leaves(10)
    rows = torch.arange(10, device="cuda").expand(B, -1)
    assert explain(q, k, v, rows=rows).startswith("triton: 0.03 of the positions have a slot; scattered is faster")
    whole = leaves(S)[0]
    every = torch.arange(S, device="cuda").expand(B, -1)
    assert explain(whole, k, v, rows=every).startswith(
        "scattered: 1.00 of the positions have a slot; scattered is faster"
    )
    assert explain(q, k, v, window=3).startswith("triton: not dense")


def test_directions_are_removed_in_the_epilogue_unless_a_backward_pass_follows() -> None:
    q = randn(1, 1024, 4, 128).bfloat16()
    cut = {"directions": normalize(randn(4, 4, 128), dim=-1).bfloat16(), "suppress": randn(1, 1024, 4, 4).bfloat16()}
    if torch.cuda.get_device_capability() == (9, 0):
        assert explain(q, q, q, **cut).startswith("triton: its epilogue")
    assert explain(q.requires_grad_(), q, q, **cut).startswith("dense")
