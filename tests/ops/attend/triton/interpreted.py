"""The kernels in Triton's interpreter on the CPU, against the reference in float64.

Not collected by name: `test_in_interpreter.py` runs this file in a process of its own, because the interpreter must be
switched on before Triton is imported. It computes bfloat16 wrongly and is slow: float32 and float16, at most 65 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oracles import assert_as_exact_as_eager, joined, rows_of, scan_inputs
from turnout.layers.rope import rotate, speeds
from turnout.ops import attend
from turnout.ops.attend.call import Call, check_call
from turnout.ops.attend.reference import reference_attend
from turnout.ops.attend.triton import op
from turnout.ops.attend.triton.configs import Plan, Tile
from turnout.ops.attend.triton.op import triton_attend
from turnout.ops.compact import compact
from turnout.ops.compact_kernel import compact_rows
from turnout.ops.conv import causal_conv
from turnout.ops.inference_kernels import conv_forward, rotate_forward
from turnout.ops.scan import chunked_scan
from turnout.ops.scan_kernel import scan

B, H, G, D = 2, 2, 1, 16
# Low tiles, so that a few tokens make several; the number is of splits.
TILES = {splits: Plan(*[Tile(16, 16, 4, 2, splits)] * 3) for splits in (1, 2)}
# Options that are tensors with a gradient, in the order of a test's inputs.
LEARNED = ("log_decay", "directions", "suppress")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_rows(n_keys: int, share: float, n_lists: int = 1, spare: int = 2, seed: int = 1) -> Tensor:
    taken = torch.rand(B, n_keys, n_lists, generator=torch.Generator().manual_seed(seed)) < share
    return torch.nn.functional.pad(rows_of(taken), (0, spare), value=-1)


def call_of(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Call:
    absent = dict.fromkeys(("rows", "keys", "log_decay", "window", "directions", "suppress", "scale"))
    return check_call(q, k, v, **{**absent, "sinks": 0, **options})


def agree(
    n_keys: int,
    n_rows: int,
    *,
    heads: tuple[int, int] = (H, G),
    width: int = D,
    splits: int = 1,
    dtype: torch.dtype = torch.float32,
    rates: Tensor | None = None,
    **options: Any,
) -> None:
    """The kernels are as exact as the reference in the same dtype, forward and for every gradient."""
    n_heads, n_groups = heads
    learned = [options.pop(name) for name in LEARNED if name in options]
    names = [name for name in LEARNED if name not in options][: len(learned)]
    if len(learned) == 2:
        names = ["directions", "suppress"]
    if rates is not None:
        options["log_decay"] = rates
    inputs = (randn(B, n_rows, n_heads, width), *(randn(B, n_keys, n_groups, width, seed=s) for s in (1, 2)), *learned)

    def run(function: Callable[[Call], Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v, *extra: function(call_of(q, k, v, **options, **dict(zip(names, extra, strict=True))))

    assert_as_exact_as_eager(
        run(lambda call: triton_attend(call, TILES[splits])),
        run(reference_attend),
        inputs,
        reduction=2 * n_keys * width * (1 + len(learned)),
        dtype=dtype,
    )


@pytest.mark.parametrize("n_keys,splits", [(1, 1), (17, 2), (63, 1), (65, 2)])
def test_routed_rows_at_every_odd_length(n_keys: int, splits: int) -> None:
    rows = some_rows(n_keys, 0.4 if n_keys > 1 else 1.0)
    agree(n_keys, rows.shape[-1], rows=rows, splits=splits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [20, 48])
def test_head_dims_that_are_padded_in_both_precisions(dtype: torch.dtype, width: int) -> None:
    rows = some_rows(33, 0.5)
    agree(33, rows.shape[-1], rows=rows, width=width, dtype=dtype)


@pytest.mark.parametrize("heads,n_lists", [((2, 2), 2), ((3, 1), 1), ((2, 2), 1)])
def test_lists_per_kv_head_and_groups_of_any_size(heads: tuple[int, int], n_lists: int) -> None:
    rows = some_rows(40, 0.4, n_lists)
    agree(40, rows.shape[-1], rows=rows, heads=heads)


@pytest.mark.parametrize("n_rows", [1, 9, 33])
def test_without_a_list_the_rows_are_the_last_ones(n_rows: int) -> None:
    agree(33, n_rows, splits=2)


@pytest.mark.parametrize(
    "rows",
    [
        [[-1, -1, -1], [-1, -1, -1]],
        [[38, -1, -1], [-1, -1, -1]],
        [[0, 1, 2], [36, 37, 38]],
        [list(range(39)), list(range(39))],
    ],
)
def test_no_rows_one_row_rows_at_the_ends_and_every_row(rows: list[list[int]]) -> None:
    agree(39, len(rows[0]), rows=torch.tensor(rows))


@pytest.mark.parametrize("window,sinks,splits", [(1, 0, 1), (9, 0, 2), (9, 3, 2), (20, 30, 1)])
def test_a_window_with_sinks(window: int, sinks: int, splits: int) -> None:
    rows = some_rows(40, 0.4)
    agree(40, rows.shape[-1], rows=rows, window=window, sinks=sinks, splits=splits)


def test_a_window_over_the_last_rows() -> None:
    agree(40, 20, window=9, sinks=3)


@pytest.mark.parametrize("splits", [1, 2])
def test_decay_with_its_gradient(splits: int) -> None:
    rows = some_rows(35, 0.4)
    agree(35, rows.shape[-1], rows=rows, splits=splits, log_decay=-randn(B, 35, H, seed=3).abs())


@pytest.mark.parametrize("splits,dtype", [(1, torch.float32), (2, torch.float16)])
def test_one_decay_for_every_step(splits: int, dtype: torch.dtype) -> None:
    rates = -torch.tensor([0.0, 0.3])
    agree(35, 35, splits=splits, dtype=dtype, rates=rates)
    rows = some_rows(35, 0.4, n_lists=G)
    starts = (rows - 7).clamp(min=0)
    agree(35, rows.shape[-1], rows=rows, starts=starts, splits=splits, dtype=dtype, rates=30 * rates)


def test_a_decay_that_sums_to_thousands_keeps_the_accuracy_of_its_differences() -> None:
    rows = some_rows(35, 0.4)
    log_decay = -100 * randn(B, 35, H, seed=3).abs()
    log_decay[:, 18:] *= 1e-4
    agree(35, rows.shape[-1], rows=rows, log_decay=log_decay)


@pytest.mark.parametrize("splits,groups,dtype", [(1, G, torch.float32), (2, G, torch.float32), (1, H, torch.float16)])
def test_suppressed_directions_with_their_gradients(splits: int, groups: int, dtype: torch.dtype) -> None:
    # In half precision, with heads of their own, dQ's kernel restores the gradient; otherwise a pass of its own does.
    rows = some_rows(33, 0.4)
    n_rows = rows.shape[-1]
    cut = {
        "directions": torch.nn.functional.normalize(randn(H, 2, D, seed=4), dim=-1),
        "suppress": randn(B, n_rows, H, 2, seed=5).abs(),
    }
    agree(33, n_rows, heads=(H, groups), rows=rows, splits=splits, dtype=dtype, **cut)


def packed_starts(rows: Tensor, bounds: list[int]) -> Tensor:
    """First position of the sequence that each row belongs to; anything in an empty slot."""
    starts = torch.tensor(bounds)
    return starts[(torch.bucketize(rows, starts, right=True) - 1).clamp_min(0)]


@pytest.mark.parametrize("window,sinks,splits", [(None, 0, 1), (None, 0, 2), (7, 2, 1), (7, 2, 2)])
def test_sequences_packed_one_after_another(window: int | None, sinks: int, splits: int) -> None:
    rows = some_rows(40, 0.6)
    starts = packed_starts(rows, [0, 5, 6, 25])
    agree(40, rows.shape[-1], rows=rows, starts=starts, window=window, sinks=sinks, splits=splits)


def test_a_packed_sequence_is_the_same_as_the_sequence_alone() -> None:
    lengths = (20, 1, 33)
    q, k, v = (randn(1, sum(lengths), H, D, seed=seed).float() for seed in range(3))
    rows = torch.arange(sum(lengths))[None, None]
    starts = packed_starts(rows, [0, 20, 21])
    whole = triton_attend(call_of(q, k, v, rows=rows, starts=starts, window=8, sinks=2), TILES[1])
    begin = 0
    for length in lengths:
        piece = slice(begin, begin + length)
        alone = triton_attend(call_of(q[:, piece], k[:, piece], v[:, piece], window=8, sinks=2), TILES[1])
        # Blocks of keys begin elsewhere, so that the sums round differently.
        assert (whole[:, piece] - alone).abs().max() <= torch.finfo(torch.float32).eps * length
        begin += length


@pytest.mark.parametrize("key_block,row_block", [(16, 8), (32, 8), (16, 3), (64, 20)])
def test_chosen_key_blocks_with_repeats_and_blocks_of_the_future(key_block: int, row_block: int) -> None:
    # The last: tiles of 16 rows and 16 keys walk blocks of 40 packed rows and 64 keys in parts.
    rows = some_rows(63, 0.5)
    n_blocks = -(-63 // key_block)
    shape = (B, -(-rows.shape[-1] // row_block), G, 3)
    keys = torch.randint(-1, n_blocks, shape, generator=torch.Generator().manual_seed(4))
    agree(63, rows.shape[-1], rows=rows, keys=keys, key_block=key_block, row_block=row_block, splits=2)


def test_all_options_at_once() -> None:
    rows = some_rows(63, 0.5)
    n_rows = rows.shape[-1]
    keys = torch.randint(-1, 4, (B, -(-n_rows // 16), G, 2), generator=torch.Generator().manual_seed(4))
    agree(
        63,
        n_rows,
        rows=rows,
        starts=packed_starts(rows, [0, 30]),
        keys=keys,
        key_block=16,
        row_block=16,
        window=20,
        sinks=3,
        log_decay=-randn(B, 63, H, seed=3).abs(),
        directions=torch.nn.functional.normalize(randn(H, 1, D, seed=4), dim=-1),
        suppress=randn(B, n_rows, H, 1, seed=5).abs(),
    )


@settings(max_examples=6)
@given(st.data())
def test_any_rows_any_shape(data: st.DataObject) -> None:
    n_keys = data.draw(st.sampled_from([1, 2, 17, 33]))
    heads = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    rows = some_rows(
        n_keys,
        data.draw(st.sampled_from([0.1, 0.5, 1.0])),
        data.draw(st.sampled_from([1, heads[1]])),
        data.draw(st.integers(0, 20)),
        data.draw(st.integers(0, 99)),
    )
    window = data.draw(st.sampled_from([None, 1, 5, 64]))
    splits = data.draw(st.sampled_from([1, 2]))
    agree(n_keys, rows.shape[-1], rows=rows, heads=heads, window=window, splits=splits)


def test_empty_slots_hold_anything_and_give_exact_zeros() -> None:
    rows = torch.tensor([[0, 5, -1, -1], [-1, -1, -1, -1]])
    q, k, v = randn(2, 4, H, D).float(), randn(2, 9, G, D, seed=1).float(), randn(2, 9, G, D, seed=2).float()
    q[rows < 0] = float("nan")
    for x in (q, k, v):
        x.requires_grad_()
    out = attend(q, k, v, rows=rows, impl="triton")
    assert not out[rows < 0].any() and out[0, :2].all()
    dq, dk, dv = torch.autograd.grad(out.sum(), (q, k, v))
    assert not dq[rows < 0].any() and not dk[1].any() and not dv[0, 6:].any()
    assert dk.isfinite().all() and dv.isfinite().all()


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    rows = some_rows(20, 0.5)
    agree(20, rows.shape[-1], rows=rows, scale=scale)


def test_later_keys_and_later_routes_do_not_change_an_earlier_row_by_one_bit() -> None:
    k, v = randn(1, 60, G, D, seed=1).float(), randn(1, 60, G, D, seed=2).float()
    q = randn(1, 40, H, D).float()
    outs = []
    for later in (range(31, 60, 2), range(45, 60), []):
        rows = [*range(0, 30, 3), *later]
        rows += [-1] * (40 - len(rows))
        outs.append(triton_attend(call_of(q, k, v, rows=torch.tensor([rows])), TILES[2])[:, :10])
        k[:, 30:], v[:, 30:] = randn(1, 30, G, D, seed=7).float(), randn(1, 30, G, D, seed=8).float()
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("splits", [1, 2])
def test_repeated_runs_agree_bit_for_bit(splits: int) -> None:
    rows = some_rows(40, 0.4)
    leaves = [randn(B, n, h, D).float().requires_grad_() for n, h in ((rows.shape[-1], H), (40, G), (40, G))]
    runs = []
    for _ in range(2):
        out = triton_attend(call_of(*leaves, rows=rows), TILES[splits])
        runs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_tensors_with_gaps_between_heads_tokens_and_channels() -> None:
    rows = some_rows(30, 0.5)
    kv = randn(B, 30, G, 2, D).float()
    wide = randn(B, rows.shape[-1], H, 2 * D, seed=3).float()
    inputs = wide[..., ::2], kv[..., 0, :], kv[..., 1, :]
    want = triton_attend(call_of(*(x.contiguous() for x in inputs), rows=rows))
    assert torch.equal(triton_attend(call_of(*inputs, rows=rows)), want)


@pytest.mark.parametrize("options", [(), ("window",), ("decay",), ("rates",), ("directions",)])
def test_the_operator_keeps_the_rules_of_torch_operators(options: tuple[str, ...]) -> None:
    rows = some_rows(20, 0.5)
    n_rows = rows.shape[-1]
    q, k, v = (randn(B, n, h, D).float().requires_grad_() for n, h in ((n_rows, H), (20, G), (20, G)))
    total = (-randn(B, 20, H).abs()).cumsum(1).requires_grad_() if "decay" in options else None
    directions = randn(H, 1, D).float().requires_grad_() if "directions" in options else None
    suppress = randn(B, n_rows, H, 1).float().requires_grad_() if "directions" in options else None
    rates = -randn(H).abs().float() if "rates" in options else None
    arguments = (q, k, v, rows, None, total, rates, None, None, directions, suppress)
    numbers = (5 if "window" in options else 0, 0, 0.25, 1, 1, ())
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(op.routed_attend, (*arguments, *numbers), test_utils=tests)


def test_one_graph_holds_router_compaction_and_attention() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(gate: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = compact_rows(gate > 0.5, gate, 20)[0]
        return attend(q, k, v, rows=rows, impl="triton")

    q, k, v = (randn(B, n, h, D).float().requires_grad_() for n, h in ((20, H), (40, G), (40, G)))
    for seed in range(2):
        gate = torch.rand(B, 40, 1, generator=torch.Generator().manual_seed(seed))
        out = layer(gate, q, k, v)
        want = attend(q, k, v, rows=compact(gate > 0.5, 20).rows, impl="triton")
        assert torch.equal(out, want)
        grads = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, want))
        assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))


@pytest.mark.parametrize("n_tokens,capacity,n_groups", [(0, 3, 1), (1, 1, 1), (63, 20, 2), (100, 200, 3), (5000, 9, 1)])
@pytest.mark.parametrize("gated", [False, True])
def test_the_compaction_kernel_lists_what_torch_lists(n_tokens: int, capacity: int, n_groups: int, gated: bool) -> None:
    gate = torch.rand(B, n_tokens, n_groups, generator=torch.Generator().manual_seed(0))
    taken = gate > 0.4
    gate = torch.where(gate > 0.9, torch.nan, gate) if gated else gate
    want = compact(taken, capacity, gate=gate)
    for have, wanted in zip(compact_rows(taken, gate if gated else None, capacity), want, strict=True):
        assert torch.equal(have, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "width"), [(3, 10), (1, 16)])
def test_one_pass_rotates_as_torch_does_at_any_positions(dtype: torch.dtype, heads: int, width: int) -> None:
    for positions in (torch.arange(7) * 3, torch.arange(14).view(B, 7), torch.arange(14 * heads).view(B, 7, heads)):
        assert_as_exact_as_eager(
            lambda x, at=positions: rotate_forward(x, at, speeds(width // 2, 10000.0, torch.float32, x.device)),
            lambda x, at=positions: rotate(x, at),
            # A view, as keys are one of keys and values.
            [randn(B, 7, 2, heads, width)[:, :, 1]],
            reduction=2,
            dtype=dtype,
            grads=False,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "channels", "taps"), [(1, 5, 4), (3, 300, 4), (40, 7, 1), (17, 3, 16)])
@pytest.mark.parametrize("begins", [True, False])
def test_one_pass_convolves_as_torch_does(
    dtype: torch.dtype, tokens: int, channels: int, taps: int, begins: bool
) -> None:
    inputs = [randn(B, tokens, channels), randn(channels, taps, seed=1)]
    inputs += [] if begins else [randn(B, taps - 1, channels, seed=2)]
    assert_as_exact_as_eager(
        lambda x, weight, *state: conv_forward(x, weight, *(state or [None])),
        lambda x, weight, *state: causal_conv(x, weight, *state)[0],
        inputs,
        reduction=2 * taps,
        dtype=dtype,
        grads=False,
    )


@pytest.mark.parametrize("n_states", [0, 1])
@pytest.mark.parametrize("length,size", [(1, 16), (33, 32)])
def test_the_scan_kernel_is_as_exact_as_the_chunked_products(length: int, size: int, n_states: int) -> None:
    assert_as_exact_as_eager(
        lambda *some: joined(scan(*some)),
        lambda *some: joined(chunked_scan(*some)),
        scan_inputs(length, n_states, size=size),
        reduction=5 * length * size,
    )


def test_stacked_models_scan_as_if_each_were_alone() -> None:
    stacked = [torch.stack([part, 0.5 * part]).float() for part in scan_inputs(17, 0)]
    y, last = torch.func.vmap(scan)(*stacked)
    for i in range(2):
        alone = scan(*(part[i] for part in stacked))
        assert torch.equal(y[i], alone[0]) and torch.equal(last[i], alone[1])


def test_a_scan_under_autocast_runs_in_float32() -> None:
    x, *rest = (part.float() for part in scan_inputs(33, 0))
    half = [part.bfloat16().requires_grad_() for part in rest]
    whole = [part.detach().float().requires_grad_() for part in half]
    results = [scan(x, *parts) for parts in (half, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    grads = [
        torch.autograd.grad(y.sum() + last.sum(), parts)
        for (y, last), parts in zip(results, (half, whole), strict=True)
    ]
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(*grads, strict=True))
