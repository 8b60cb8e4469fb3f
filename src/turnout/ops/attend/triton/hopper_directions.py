"""Removal of directions in the epilogue of the kernel of `hopper.py`, as two products of a warpgroup.

    c = o d^T [BM, LANES],   o' = o − (r c) d          directions and amounts beyond K are zeros

What has to come from memory is asked for before the loop over keys: behind it both warpgroups would wait for it. In
shared memory, because the loop leaves no register.

Axes: B batch, R rows, H heads, D head dim, K directions, BM rows of a warpgroup.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

# Directions of a product: what a product takes at least of the axis that it sums over.
LANES = gl.constexpr(16)


@gluon.jit
def put_directions(directions_ptr, place, head, WIDE: gl.constexpr, K: gl.constexpr, D: gl.constexpr):
    """The directions of a head into shared memory [LANES, D]; a fence and a barrier have to follow."""
    which = gl.arange(0, LANES, gl.SliceLayout(1, WIDE))
    column = gl.arange(0, D, gl.SliceLayout(0, WIDE))
    at = directions_ptr + (head * K + which)[:, None] * D + column[None, :]
    place.store(gl.load(at, mask=(which < K)[:, None], other=0.0).to(place.dtype))


@gluon.jit
def put_amounts(suppress_ptr, place, row, inside, COEFFICIENTS: gl.constexpr, K: gl.constexpr):
    """r into shared memory [BM, LANES], where every thread finds its own again; `row` is (b·R + r)·H + h."""
    which = gl.arange(0, LANES, gl.SliceLayout(0, COEFFICIENTS))
    mask = inside[:, None] & (which < K)[None, :]
    place.store(gl.load(suppress_ptr + row[:, None] * K + which[None, :], mask=mask, other=0.0).to(place.dtype))


@gluon.jit
def remove_directions(
    acc, amounts, place, along_ptr, row, inside, OUT: gl.constexpr, COEFFICIENTS: gl.constexpr, K: gl.constexpr
):
    """o' [BM, D] of o, float32; c goes to `along_ptr` [B, R, H, K] where it is not None."""
    rounded = gl.convert_layout(acc.to(place.dtype), gl.DotOperandLayout(0, COEFFICIENTS, 2))
    nothing = gl.zeros([acc.shape[0], LANES], gl.float32, COEFFICIENTS)
    along = warpgroup_mma(rounded, place.permute((1, 0)), nothing, use_acc=False, is_async=True)
    along = warpgroup_mma_wait(0, deps=[along])
    share = (-amounts.load(COEFFICIENTS).to(gl.float32) * along).to(place.dtype)
    acc = warpgroup_mma(gl.convert_layout(share, gl.DotOperandLayout(0, OUT, 2)), place, acc, is_async=True)
    if along_ptr is not None:
        which = gl.arange(0, LANES, gl.SliceLayout(0, COEFFICIENTS))
        at = gl.convert_layout(row, gl.SliceLayout(1, COEFFICIENTS))[:, None] * K + which[None, :]
        mask = gl.convert_layout(inside, gl.SliceLayout(1, COEFFICIENTS))[:, None] & (which < K)[None, :]
        gl.store(along_ptr + at, along, mask=mask)
    return warpgroup_mma_wait(0, deps=[acc])
