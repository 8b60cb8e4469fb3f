"""Keys and values of the past, in one preallocated buffer that is written in place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from turnout.errors import ShapeError, UnsupportedError
from turnout.ops.one_pass import one_pass


class KVCache:
    """Contiguous cache [B, max_len, G, D]; `append` writes the new tokens and returns views of everything so far.

    A token that stays on the local track costs one write and reads nothing. Inference only: writes are in place, so
    autograd must be off.

    `length` is known to the host. While `position` is set (`turnout.models.DecodeStep` does that), the place of the
    next token is read from that tensor on the device, so that one captured CUDA graph is every step: `append` then
    takes one token, returns the whole buffers and leaves both `length` and `position` to their owner.

    Args:
        batch, max_len, kv_heads, head_dim: shape; max_len is the longest sequence it can hold.
    Attributes:
        position: int64 [1], or [B] where sequences are of different lengths, or None.
    Raises:
        ShapeError: appending past max_len, or another batch size than the cache was made for.
        UnsupportedError: appending keys that autograd tracks.
    """

    def __init__(
        self, batch: int, max_len: int, kv_heads: int, head_dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.k = torch.empty(batch, max_len, kv_heads, head_dim, device=device, dtype=dtype)
        self.v = torch.empty_like(self.k)
        self.length = 0
        self.position: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, T, G, D] behind the past; return views [B, past + T, G, D], or the buffers (see above)."""
        self.check_room(k.shape[0], k.shape[1])
        if k.requires_grad or v.requires_grad:
            raise UnsupportedError(
                "the key/value cache is written in place, which autograd cannot follow; decode under torch.no_grad(), "
                "or train on whole sequences with state=None"
            )
        if self.position is not None:
            if k.shape[1] != 1:
                raise ShapeError(f"got {k.shape[1]} tokens; with its position on the device it takes one at a time")
            if len(self.position) == 1:
                self.k.index_copy_(1, self.position, k.to(self.k.dtype))
                self.v.index_copy_(1, self.position, v.to(self.v.dtype))
            else:
                rows = torch.arange(len(self.k), device=self.k.device)
                self.k[rows, self.position] = k[:, 0].to(self.k.dtype)
                self.v[rows, self.position] = v[:, 0].to(self.v.dtype)
            return self.k, self.v
        end = self.length + k.shape[1]
        for new, buffer in ((k, self.k), (v, self.v)):
            _write(new, buffer[:, self.length : end])
        self.length = end
        return self.k[:, :end], self.v[:, :end]

    def next_positions(self, tokens: int) -> Tensor:
        """Positions int64 [T] of the next tokens, on the device; [B, 1] where each sequence has its own."""
        if self.position is not None:
            return self.position if len(self.position) == 1 else self.position[:, None]
        return torch.arange(self.length, self.length + tokens, device=self.k.device)

    def part(self, rows: slice) -> KVCache:
        """The cache of some of the sequences, in the same memory."""
        other = copy.copy(self)
        other.k, other.v = self.k[rows], self.v[rows]
        return other

    def check_room(self, batch: int, tokens: int) -> None:
        """Raise unless `tokens` more tokens of `batch` sequences fit."""
        held, end = self.k.shape[1], self.length + tokens
        if batch != self.k.shape[0]:
            raise ShapeError(
                f"key/value cache is for {self.k.shape[0]} sequences, got {batch}; call init_state(batch={batch}, ...)"
            )
        if end > held:
            raise ShapeError(
                f"key/value cache holds {held} tokens, got {end}; call init_state(batch, max_len >= {end})"
            )


def _write(new: Tensor, place: Tensor) -> None:
    """place[:] = new; where torch would copy rows that lie apart element by element, in one pass."""
    if one_pass(new) and new.shape[1] > 1:
        from turnout.ops.inference_kernels import copies_rows, copy_rows

        if copies_rows(new, place):
            return copy_rows(new, place)
    place.copy_(new)
