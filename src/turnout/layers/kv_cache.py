"""Keys and values of the past, in one preallocated buffer that is written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ShapeError, UnsupportedError


class KVCache:
    """Contiguous cache [B, max_len, G, D]; `append` writes the new tokens and returns views of everything so far.

    A token that stays on the local track costs one write and reads nothing. Inference only: writes are in place, so
    autograd must be off.

    Args:
        batch, max_len, kv_heads, head_dim: shape; max_len is the longest sequence it can hold.
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

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, T, G, D] behind the past; return views [B, past + T, G, D]."""
        self.check_room(k.shape[0], k.shape[1])
        if k.requires_grad or v.requires_grad:
            raise UnsupportedError(
                "the key/value cache is written in place, which autograd cannot follow; decode under torch.no_grad(), "
                "or train on whole sequences with state=None"
            )
        end = self.length + k.shape[1]
        self.k[:, self.length : end] = k
        self.v[:, self.length : end] = v
        self.length = end
        return self.k[:, :end], self.v[:, :end]

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
