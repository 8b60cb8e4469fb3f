"""The selective scan as one kernel a direction: states stay in registers, nothing of size T x Q reaches memory.

B batch, T tokens, H heads, P channels of a head, N state size, Q tokens of a chunk.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Products want 16 of everything, and more tokens at once would spill registers of the backward pass.
CHUNK, WARPS, LEAST, MOST = 16, 2, 16, 64


def fits(x: Tensor, write: Tensor) -> bool:
    """Whether the kernel takes these shapes: a GPU, float32, P and N powers of two from 16 to 64."""
    sizes = (x.shape[-1], write.shape[-1])
    shaped = all(LEAST <= size <= MOST and size & (size - 1) == 0 for size in sizes)
    return x.is_cuda and x.dtype == torch.float32 and x.shape[1] > 0 and shaped


def scan(
    x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`turnout.ops.scan.selective_scan` by the kernels, in float32: under autocast only x is."""
    log_decay, write, read = log_decay.float(), write.float(), read.float()
    y, last = SelectiveScan.apply(x, log_decay, write, read, None if state is None else state.float())
    return y, last


@triton.jit
def _forward(
    x_ptr, decay_ptr, write_ptr, read_ptr, first_ptr, y_ptr, last_ptr, T,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One (sequence, head): y, and the state [P, N] after the last token."""
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    q, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    place = tl.program_id(0).to(tl.int64) * P * N + p[:, None] * N + n[None, :]
    state = tl.zeros([P, N], tl.float32)
    if first_ptr is not None:
        state += tl.load(first_ptr + place)
    for begin in range(0, T, Q):
        t = b * T + begin + q
        inside = begin + q < T
        x = tl.load(x_ptr + (t[:, None] * H + h) * P + p[None, :], mask=inside[:, None], other=0.0)
        total = tl.cumsum(tl.load(decay_ptr + t * H + h, mask=inside, other=0.0), 0)
        write = tl.load(write_ptr + t[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
        read = tl.load(read_ptr + t[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
        gap = tl.where(q[:, None] >= q[None, :], total[:, None] - total[None, :], -float("inf"))
        weight = tl.dot(read, tl.trans(write), input_precision=PRECISION) * tl.exp(gap)
        y = tl.dot(weight, x, input_precision=PRECISION)
        y += tl.dot(read * tl.exp(total)[:, None], tl.trans(state), input_precision=PRECISION)
        tl.store(y_ptr + (t[:, None] * H + h) * P + p[None, :], y, mask=inside[:, None])
        whole = tl.sum(tl.where(q == Q - 1, total, 0.0), 0)
        fading = x * tl.exp(whole - total)[:, None]
        state = state * tl.exp(whole) + tl.dot(tl.trans(fading), write, input_precision=PRECISION)
    tl.store(last_ptr + place, state)


@triton.jit
def _backward(
    x_ptr, decay_ptr, write_ptr, read_ptr, first_ptr, y_ptr, dy_ptr, dlast_ptr,
    dx_ptr, ddecay_ptr, dwrite_ptr, dread_ptr, dfirst_ptr, T,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One (sequence, head): the states again from the first token on for dread, then their adjoints from the last.

    d log_decay_t = <y_t, dy_t> - <x_t, dx_t> + d log_decay_{t+1}, which ends in <state, dstate> after the last token.
    """
    b, h = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    q, p, n = tl.arange(0, Q), tl.arange(0, P), tl.arange(0, N)
    place = tl.program_id(0).to(tl.int64) * P * N + p[:, None] * N + n[None, :]
    state = tl.zeros([P, N], tl.float32)
    if first_ptr is not None:
        state += tl.load(first_ptr + place)
    for begin in range(0, T, Q):
        t = b * T + begin + q
        inside = begin + q < T
        rows = (t[:, None] * H + h) * P + p[None, :]
        x = tl.load(x_ptr + rows, mask=inside[:, None], other=0.0)
        dy = tl.load(dy_ptr + rows, mask=inside[:, None], other=0.0)
        total = tl.cumsum(tl.load(decay_ptr + t * H + h, mask=inside, other=0.0), 0)
        write = tl.load(write_ptr + t[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
        gap = tl.where(q[:, None] >= q[None, :], total[:, None] - total[None, :], -float("inf"))
        weight = tl.dot(dy, tl.trans(x), input_precision=PRECISION) * tl.exp(gap)
        dread = tl.dot(weight, write, input_precision=PRECISION)
        dread += tl.dot(dy * tl.exp(total)[:, None], state, input_precision=PRECISION)
        tl.store(dread_ptr + (t[:, None] * H + h) * N + n[None, :], dread, mask=inside[:, None])
        whole = tl.sum(tl.where(q == Q - 1, total, 0.0), 0)
        fading = x * tl.exp(whole - total)[:, None]
        state = state * tl.exp(whole) + tl.dot(tl.trans(fading), write, input_precision=PRECISION)
    adjoint = tl.load(dlast_ptr + place)
    carry = tl.sum(tl.sum(adjoint * state, 1), 0)
    n_chunks = tl.cdiv(T, Q)
    for back in range(0, n_chunks):
        begin = (n_chunks - 1 - back) * Q
        t = b * T + begin + q
        inside = begin + q < T
        rows = (t[:, None] * H + h) * P + p[None, :]
        x = tl.load(x_ptr + rows, mask=inside[:, None], other=0.0)
        y = tl.load(y_ptr + rows, mask=inside[:, None], other=0.0)
        dy = tl.load(dy_ptr + rows, mask=inside[:, None], other=0.0)
        total = tl.cumsum(tl.load(decay_ptr + t * H + h, mask=inside, other=0.0), 0)
        write = tl.load(write_ptr + t[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
        read = tl.load(read_ptr + t[:, None] * N + n[None, :], mask=inside[:, None], other=0.0)
        whole = tl.sum(tl.where(q == Q - 1, total, 0.0), 0)
        # ahead[s, t] = decay from s to a later t: the transpose of the forward's.
        gap = tl.where(q[:, None] <= q[None, :], total[None, :] - total[:, None], -float("inf"))
        ahead, fade = tl.exp(gap), tl.exp(whole - total)[:, None]
        weight = tl.dot(write, tl.trans(read), input_precision=PRECISION) * ahead
        dx = tl.dot(weight, dy, input_precision=PRECISION)
        dx += tl.dot(write * fade, tl.trans(adjoint), input_precision=PRECISION)
        weight = tl.dot(x, tl.trans(dy), input_precision=PRECISION) * ahead
        dwrite = tl.dot(weight, read, input_precision=PRECISION) + tl.dot(x * fade, adjoint, input_precision=PRECISION)
        tl.store(dx_ptr + rows, dx, mask=inside[:, None])
        tl.store(dwrite_ptr + (t[:, None] * H + h) * N + n[None, :], dwrite, mask=inside[:, None])
        change = tl.sum(y * dy - x * dx, 1)
        # Sum of this token and the later ones.
        later = tl.sum(change, 0) - tl.cumsum(change, 0) + change
        tl.store(ddecay_ptr + t * H + h, later + carry, mask=inside)
        carry += tl.sum(change, 0)
        grown = dy * tl.exp(total)[:, None]
        adjoint = adjoint * tl.exp(whole) + tl.dot(tl.trans(grown), read, input_precision=PRECISION)
    if dfirst_ptr is not None:
        tl.store(dfirst_ptr + place, adjoint)


class SelectiveScan(torch.autograd.Function):
    """`apply(x, log_decay, write, read, state or None)` -> y, last state.

    Stacked models (`torch.func.vmap`) become more sequences. Cost: 3 reads and a write of x forward, about 10 backward.
    """

    @staticmethod
    def forward(
        x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n_batch, length, heads, channels = x.shape
        x, log_decay, write, read = (part.contiguous() for part in (x, log_decay, write, read))
        first = None if state is None else state.contiguous()
        y = torch.empty_like(x)
        last = x.new_empty(n_batch, heads, channels, write.shape[-1])
        with _on(x):
            _forward[(n_batch * heads,)](
                x, log_decay, write, read, first, y, last, length,
                H=heads, P=channels, N=write.shape[-1], Q=CHUNK, PRECISION=_precision(), num_warps=WARPS,
            )  # fmt: skip
        return y, last

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, state, y = ctx.saved_tensors
        x, log_decay, write, read = (part.contiguous() for part in inputs)
        first = None if state is None else state.contiguous()
        dy, dlast = (grad.contiguous() for grad in grads)
        n_batch, length, heads, channels = x.shape
        size = write.shape[-1]
        dx, ddecay, dfirst = torch.empty_like(x), torch.empty_like(log_decay), None
        dwrite, dread = (x.new_empty(n_batch, length, heads, size) for _ in range(2))
        if first is not None:
            dfirst = torch.empty_like(first)
        with _on(x):
            _backward[(n_batch * heads,)](
                x, log_decay, write, read, first, y, dy, dlast, dx, ddecay, dwrite, dread, dfirst, length,
                H=heads, P=channels, N=size, Q=CHUNK, PRECISION=_precision(), num_warps=WARPS,
            )  # fmt: skip
        return dx, ddecay, dwrite.sum(2), dread.sum(2), dfirst

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor | None) -> tuple[tuple[Tensor, Tensor], Any]:
        def folded(part: Tensor | None, dim: int | None) -> Tensor | None:
            if part is None:
                return None
            stacked = part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            return stacked.flatten(0, 1)

        out = SelectiveScan.apply(*(folded(part, dim) for part, dim in zip(inputs, in_dims, strict=True)))
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in out), (0, 0)


def _precision() -> str:
    """As torch's own products: TF32 where the program allows it."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
