"""The selective scan of a state space model, whole sequence at once: matrix products over chunks, no loop over tokens.

B batch, T tokens, H heads, P channels of a head, N state size, C chunks of Q tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from turnout.errors import ShapeError


def selective_scan(
    x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, *, state: Tensor | None = None, chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """Run the recurrence for all tokens in parallel.

        h_t = exp(log_decay_t) h_{t-1} + write_t x_tᵀ,   y_t = read_tᵀ h_t                       (Dao & Gu 2024, eq. 6)

    Inside a chunk y is a masked product (read writeᵀ ∘ decay) x; the states between chunks are one more product with
    the decays from chunk to chunk. Every exponent is a sum of log decays <= 0, so nothing can overflow. On a GPU one
    kernel does the same in registers (float32; P and N powers of two from 16 to 64).

    Args:
        x: inputs [B, T, H, P].
        log_decay: [B, T, H], <= 0.
        write: input vectors [B, T, N], shared by the heads.
        read: output vectors [B, T, N].
        state: h_{-1}, [B, H, P, N]; None = 0.
        chunk: Q >= 1; changes the cost only.
    Returns:
        y like x, and h after the last token, [B, H, P, N].
    Raises:
        ShapeError: the shapes do not fit together.
    Cost: O(B·T·(Q·(N + H·P) + H·P·N) + B·(T/Q)²·H·P·N) multiply-adds.
    """
    n_batch, length, heads, _ = x.shape
    if log_decay.shape != (n_batch, length, heads):
        raise ShapeError(f"log_decay has shape {list(log_decay.shape)}; expected {[n_batch, length, heads]}")
    if write.shape != read.shape or write.shape[:2] != (n_batch, length):
        raise ShapeError(
            f"write {list(write.shape)} and read {list(read.shape)}; expected [B, T, N] with B={n_batch}, T={length}"
        )
    if x.is_cuda and not torch.compiler.is_compiling():
        from turnout.ops import scan_kernel

        if scan_kernel.fits(x, write):
            return scan_kernel.scan(x, log_decay, write, read, state)
    return chunked_scan(x, log_decay, write, read, state, chunk=chunk)


def chunked_scan(
    x: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, state: Tensor | None = None, *, chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """`selective_scan` in plain torch, on any device.

    Products keep heads and channels side by side, so that x is copied for the product inside a chunk alone.
    """
    length, heads = x.shape[1:3]
    size = min(chunk, length)
    short = -length % size
    x, write, read = pad(x, (0, 0, 0, 0, 0, short)), pad(write, (0, 0, 0, short)), pad(read, (0, 0, 0, short))
    x, write, read = (t.unflatten(1, (-1, size)) for t in (x, write, read))
    total = pad(log_decay, (0, 0, 0, short)).unflatten(1, (-1, size)).cumsum(2)
    # decay[q, s] = product of the decays after s, up to q.
    weight = (read @ write.transpose(-1, -2))[:, :, None] * _lower(total.movedim(-1, 2))
    y = (weight @ x.transpose(2, 3)).transpose(2, 3)
    last = total[:, :, -1:]
    fading = x * (last - total).exp()[..., None]
    # [B, C, N, H, P]: what each chunk adds to the state.
    added = (write.transpose(-1, -2) @ fading.flatten(3)).unflatten(-1, (heads, -1))
    ends = last[:, :, 0].cumsum(1)
    # The state before chunk c, and after the last one: those of the chunks before it, decayed by the chunks in between.
    before = pad(ends, (0, 0, 1, 0))
    n_chunks = ends.shape[1]
    gap = before[:, :, None] - ends[:, None]
    past = torch.ones(n_chunks + 1, n_chunks, dtype=torch.bool, device=x.device).tril(-1)[..., None]
    carried = torch.einsum("bcjh,bjnhp->bcnhp", gap.masked_fill(~past, -torch.inf).exp(), added)
    if state is not None:
        carried = carried + before.exp()[:, :, None, :, None] * state.permute(0, 3, 1, 2)[:, None]
    if state is not None or n_chunks > 1:
        reached = (read @ carried[:, :-1].flatten(3)).unflatten(-1, (heads, -1))
        y = torch.addcmul(y, reached, total.exp()[..., None])
    return y.flatten(1, 2)[:, :length], carried[:, -1].permute(0, 2, 3, 1)


def _lower(total: Tensor) -> Tensor:
    """exp(total_q - total_s) for s <= q, else 0: [..., Q] -> [..., Q, Q]."""
    gap = total[..., :, None] - total[..., None, :]
    past = torch.ones(gap.shape[-2:], dtype=torch.bool, device=total.device).tril()
    # The mask comes before exp: above the diagonal the difference is positive and could overflow.
    return gap.masked_fill(~past, -torch.inf).exp()
