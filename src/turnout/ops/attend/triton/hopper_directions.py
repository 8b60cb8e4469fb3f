"""Removal of directions in the epilogue of the kernel of `hopper.py`, as two products of a warpgroup.

    c = o d^T [BM, LANES],   o' = o − (r c) d          amounts of other heads count as zeros

Directions and amounts come with the rows of q: the copying warp brings them while the tile before is computed, so that
the loop over keys holds no register for them. A bulk copy of amounts starts at whole 16 bytes, or it is an illegal
instruction: it brings some of the head before, if need be, and the copy of directions as many.

Axes: B batch, R rows, H heads, D head dim, K directions, BM rows of a warpgroup.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

# Directions of a product: what a product takes at least of the axis that it sums over.
LANES = gl.constexpr(16)
# Amounts of whole 16 bytes.
APART = gl.constexpr(8)


@gluon.jit
def remove_directions(
    acc, amounts, place, first, along_ptr, row, inside, OUT: gl.constexpr, COEFFICIENTS: gl.constexpr, K: gl.constexpr
):
    """o' [BM, D] of o, float32; c goes to `along_ptr` [B, R, H, K] where it is not None.

    Args:
        amounts, place: r [BM, LANES] and directions [LANES, D] in shared memory; the head's own are K from `first` on.
        row: (b·R + r)·H + h.
    """
    rounded = gl.convert_layout(acc.to(place.dtype), gl.DotOperandLayout(0, COEFFICIENTS, 2))
    nothing = gl.zeros([acc.shape[0], LANES], gl.float32, COEFFICIENTS)
    along = warpgroup_mma(rounded, place.permute((1, 0)), nothing, use_acc=False, is_async=True)
    which = gl.arange(0, LANES, gl.SliceLayout(0, COEFFICIENTS)) - first
    own = (which >= 0) & (which < K)
    r = gl.where(own[None, :], amounts.load(COEFFICIENTS).to(gl.float32), 0.0)
    along = warpgroup_mma_wait(0, deps=[along])
    share = (-r * along).to(place.dtype)
    acc = warpgroup_mma(gl.convert_layout(share, gl.DotOperandLayout(0, OUT, 2)), place, acc, is_async=True)
    if along_ptr is not None:
        at = gl.convert_layout(row, gl.SliceLayout(1, COEFFICIENTS))[:, None] * K + which[None, :]
        mask = gl.convert_layout(inside, gl.SliceLayout(1, COEFFICIENTS))[:, None] & own[None, :]
        gl.store(along_ptr + at, along, mask=mask)
    return warpgroup_mma_wait(0, deps=[acc])
