"""Bloom filters: does a segment hold the query token? Never misses, errs at a known rate.

B batch, T tokens, Q queries, U segments, M bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, check_segments

_PRIME = 2_147_483_647


@CONTENT_SELECTORS.register("bloom")
class BloomSelector(ContentSelector):
    """s_iu = 1 if the filter of segment u may hold the query token, else 0. Not learned.

    False positives at n = `size` tokens, h hashes, m = bits·n bits: (1 - e^(-h·n/m))^h.

    Args:
        size: tokens of a segment.
        bits: filter bits per token.
        hashes: h.
        max_error: the rate of false positives above which the filter is refused.
    Raises:
        ConfigError: the filter would err more often than `max_error`.
    """

    learned = False
    hash: Tensor

    def __init__(
        self,
        context: SelectorContext,
        *,
        size: int = 32,
        bits: float = 10.0,
        hashes: int = 7,
        max_error: float = 0.05,
    ) -> None:
        super().__init__(context)
        check_segments("bloom", context.length, size)
        if bits <= 0 or hashes < 1:
            raise ConfigError(f"selector bloom: bits={bits}, hashes={hashes}; expected both > 0")
        self.unit, self.bits = size, max(1, round(bits * size))
        self.error = false_positives(self.bits, size, hashes)
        if self.error > max_error:
            raise ConfigError(
                f"selector bloom: {size} tokens in {self.bits} bits with {hashes} hashes err at a rate of "
                f"{self.error:.3g}, above max_error={max_error}; use more bits or fewer hashes"
            )
        drawn = torch.randint(1, _PRIME, (2, hashes), generator=torch.Generator().manual_seed(0))
        self.register_buffer("hash", drawn, persistent=False)

    def _places(self, tokens: Tensor) -> Tensor:
        """Bits of each token, [..., h]."""
        return ((tokens[..., None] * self.hash[0] + self.hash[1]) % _PRIME) % self.bits

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        inside = self._places(tokens.unflatten(1, (self.units, self.unit))).flatten(2)
        table = torch.zeros(*inside.shape[:2], self.bits, device=x.device, dtype=x.dtype)
        table = table.scatter(2, inside, torch.ones_like(inside, dtype=x.dtype))
        asked = self._places(tokens.gather(1, at))
        rows = table[:, None].expand(-1, at.shape[1], -1, -1)
        index = asked[:, :, None].expand(-1, -1, self.units, -1)
        return (rows.gather(3, index) > 0).all(-1).to(x.dtype)


def false_positives(bits: int, items: int, hashes: int) -> float:
    """(1 - e^(-h·n/m))^h: how often a filter of m bits with n items claims one that it never saw."""
    return (1 - math.exp(-hashes * items / bits)) ** hashes
