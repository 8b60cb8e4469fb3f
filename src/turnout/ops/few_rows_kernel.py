"""y = x W^T for a handful of rows and one or two matrices.

Axes: B rows, E inputs, N outputs; BM rows, BN outputs and BK inputs of a tile.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

BM, BK = 16, 128
# Outputs of a program: few matrices of few rows need more programs than tall tiles give.
WIDE, NARROW, MANY = 64, 16, 4096
FLAGS = 16


@triton.jit(do_not_specialize=["n_rows", "n_flags"])
def few_rows_kernel(
    x_ptr, first_ptr, second_ptr, y_ptr, z_ptr, taken_ptr, scale_ptr, n_rows, n_flags, n_first, n_second,
    E: tl.constexpr, GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """Programs share the outputs of the first matrix, then those of the second; float32 sums in one fixed order."""
    begin = tl.program_id(0) * BN
    row, k = tl.arange(0, BM), tl.arange(0, BK)
    acc = tl.zeros([BN, BM], tl.float32)
    here = (row < n_rows)[None, :]
    if begin < n_first:
        wanted = 1
        if GATED:
            wanted = 0
            for i in range(0, n_flags, FLAGS):
                flag = i + tl.arange(0, FLAGS)
                wanted += tl.sum(tl.load(taken_ptr + flag, mask=flag < n_flags, other=0).to(tl.int32), 0)
        out = begin + tl.arange(0, BN)
        if wanted > 0:
            for at in range(0, E, BK):
                inside = at + k < E
                weight = tl.load(
                    first_ptr + out[:, None].to(tl.int64) * E + (at + k)[None, :], mask=inside[None, :], other=0.0
                )
                x = tl.load(x_ptr + row[None, :] * E + (at + k)[:, None], mask=inside[:, None] & here, other=0.0)
                acc = tl.dot(weight, x, acc, input_precision="ieee")
        if scale_ptr is not None:
            acc *= tl.load(scale_ptr + row, mask=row < n_rows, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptr + row[None, :] * n_first + out[:, None], acc.to(y_ptr.dtype.element_ty), mask=here)
    else:
        out = begin - n_first + tl.arange(0, BN)
        for at in range(0, E, BK):
            inside = at + k < E
            weight = tl.load(
                second_ptr + out[:, None].to(tl.int64) * E + (at + k)[None, :], mask=inside[None, :], other=0.0
            )
            x = tl.load(x_ptr + row[None, :] * E + (at + k)[:, None], mask=inside[:, None] & here, other=0.0)
            acc = tl.dot(weight, x, acc, input_precision="ieee")
        tl.store(z_ptr + row[None, :] * n_second + out[:, None], acc.to(z_ptr.dtype.element_ty), mask=here)


def launch(
    x: Tensor, first: Tensor, second: Tensor | None, taken: Tensor | None, scale: Tensor | None
) -> list[Tensor]:  # fmt: skip
    """[B, N] of each matrix, from contiguous x [B, E], matrices [N, E] of its dtype, N in whole tiles; scale [B]."""
    n_rows, width = x.shape
    found = [x.new_empty(n_rows, len(w)) for w in (first, second) if w is not None]
    n_second = 0 if second is None else len(second)
    wide = len(first) + n_second > MANY
    columns, steps = (WIDE, BK) if wide else (NARROW, 2 * BK)
    flags = x if taken is None else taken.contiguous().view(torch.uint8)
    arguments = {
        "x_ptr": x, "first_ptr": first, "second_ptr": first if second is None else second, "y_ptr": found[0],
        "z_ptr": found[-1], "taken_ptr": flags, "scale_ptr": None if scale is None else scale.contiguous(),
        "n_rows": n_rows, "n_flags": flags.numel(), "n_first": len(first), "n_second": n_second, "E": width,
        "GATED": taken is not None, "BM": BM, "BN": columns, "BK": steps, "FLAGS": FLAGS,
    }  # fmt: skip
    if n_rows:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            grid = ((len(first) + n_second) // columns,)
            few_rows_kernel[grid](**arguments, num_warps=4, num_stages=4)
    return found
