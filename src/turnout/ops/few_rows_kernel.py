"""y = x W^T for a handful of rows and one or two matrices, as sums of parts.

Axes: B rows, E inputs, N outputs, S parts of the inputs; BM rows, BN outputs and BK inputs of a tile.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

BM, BN, BK = 16, 64, 128
# Tiles that one program reads, of a matrix below and from LARGE weights on: few keep all multiprocessors busy, many
# leave fewer parts to add up. H200, E = 2,048: 4.3 and 5.1 us for 8 MB, 9.6 and 8.4 for 25 MB, 9.9 and 9.0 for 22 MB.
STEPS, LARGE = (4, 8), 2**23
FLAGS = 16


@triton.jit(do_not_specialize=["n_rows", "n_flags"])
def few_rows_kernel(
    x_ptr, first_ptr, second_ptr, y_ptr, taken_ptr, n_rows, n_flags, n_first, n_outputs, E: tl.constexpr,
    GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STEPS: tl.constexpr,
    FLAGS: tl.constexpr,
):  # fmt: skip
    """One part of the sums of BN outputs, those of the first matrix, then those of the second: y [S, B, N]."""
    begin, part = tl.program_id(0) * BN, tl.program_id(1)
    out, row, k = begin + tl.arange(0, BN), tl.arange(0, BM), tl.arange(0, BK)
    here = (row < n_rows)[None, :]
    wanted = 1
    weights = first_ptr + out[:, None].to(tl.int64) * E
    if begin >= n_first:
        weights = second_ptr + (out - n_first)[:, None].to(tl.int64) * E
    elif GATED:
        wanted = 0
        for i in range(0, n_flags, FLAGS):
            flag = i + tl.arange(0, FLAGS)
            wanted += tl.sum(tl.load(taken_ptr + flag, mask=flag < n_flags, other=0).to(tl.int32), 0)
    acc = tl.zeros([BN, BM], tl.float32)
    if wanted > 0:
        for i in range(0, STEPS):
            at = (part * STEPS + i) * BK + k
            inside = at < E
            weight = tl.load(weights + at[None, :], mask=inside[None, :], other=0.0)
            x = tl.load(x_ptr + row[None, :] * E + at[:, None], mask=inside[:, None] & here, other=0.0)
            acc = tl.dot(weight, x, acc, input_precision="ieee")
    target = y_ptr + (part * n_rows + row[None, :]) * n_outputs + out[:, None]
    tl.store(target, acc, mask=here)


def cut(width: int, n_outputs: int) -> tuple[int, int]:
    """Tiles of one part of E inputs, and parts S."""
    steps = STEPS[width * n_outputs >= LARGE]
    return steps, -(-width // (BK * steps))


def launch(x: Tensor, first: Tensor, second: Tensor | None, taken: Tensor | None) -> Tensor:
    """float32 [S, B, N] of all outputs, from contiguous x [B, E] and matrices [N, E] of its dtype, N in whole tiles."""
    n_rows, width = x.shape
    n_outputs = len(first) + (0 if second is None else len(second))
    steps, parts = cut(width, n_outputs)
    y = torch.empty(parts, n_rows, n_outputs, device=x.device)
    flags = x if taken is None else taken.contiguous().view(torch.uint8)
    arguments = {
        "x_ptr": x, "first_ptr": first, "second_ptr": first if second is None else second, "y_ptr": y,
        "taken_ptr": flags, "n_rows": n_rows, "n_flags": flags.numel(), "n_first": len(first),
        "n_outputs": n_outputs, "E": width, "GATED": taken is not None, "BM": BM, "BN": BN, "BK": BK, "STEPS": steps,
        "FLAGS": FLAGS,
    }  # fmt: skip
    if n_rows:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            few_rows_kernel[(n_outputs // BN, parts)](**arguments, num_warps=4, num_stages=4)
    return y
