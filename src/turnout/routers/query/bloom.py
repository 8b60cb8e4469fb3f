"""Bloom-filter query router: a token attends if there may be something to recall.

B batch, T tokens, M bits, h hashes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError, UnsupportedError
from turnout.routers.mode import RoutingMode
from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.gating import Route

_PRIME = 2_147_483_647
# Later than any position: a bit that nobody has set.
_NEVER = 2**62


@QUERY_ROUTERS.register("bloom")
class BloomRouter(QueryRouter):
    """Take a token if its last `ngram` tokens may have occurred before in the sequence; nothing is learned.

        taken_t = every one of the h bits of hash(x_{t-ngram+1..t}) was set before t;  then they are set

    A Bloom filter (Bloom 1970) never misses: a token that repeats always attends. With n distinct n-grams stored it
    errs at rate (1 - e^(-h·n/M))^h. All tokens of a call are decided at once: a bit remembers the first position that
    set it, so that filter before t = bits whose first position is below t.

    Args:
        ngram: tokens that must repeat together, >= 1.
        bits: M, shared by a sequence, >= 1.
        hashes: h, >= 1.
    Raises:
        UnsupportedError: the pass has no token ids (`RoutingMode.tokens`; a model fills it in).
    Cost: O(h) per token. State: first positions int64 [B, M], the last ngram - 1 tokens, the number of tokens seen.
    """

    learned = False
    hash: Tensor

    def __init__(self, context: RouterContext, *, ngram: int = 1, bits: int = 8192, hashes: int = 4) -> None:
        super().__init__(context)
        for name, value in (("ngram", ngram), ("bits", bits), ("hashes", hashes)):
            if value < 1:
                raise ConfigError(f"router bloom: {name}={value}; expected >= 1")
        self.ngram, self.bits = ngram, bits
        drawn = torch.randint(1, _PRIME, (ngram + 1, hashes), generator=torch.Generator().manual_seed(0))
        self.register_buffer("hash", drawn, persistent=False)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return (
            torch.full((batch, self.bits), _NEVER, device=device),
            torch.full((batch, self.ngram - 1), -1, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        if mode.tokens is None:
            raise UnsupportedError(
                "router bloom decides by token ids and this pass has none; call a model with tokens, or pass "
                "RoutingMode(tokens=...)"
            )
        tokens = mode.tokens
        first, tail, start = state or self.init_state(len(x), device=x.device, dtype=x.dtype)
        line = torch.cat((tail, tokens), dim=1)
        places = self._places(line)
        at = start + torch.arange(tokens.shape[1], device=x.device)
        # No n-gram ends before position ngram - 1.
        known = at >= self.ngram - 1
        when = torch.where(known, at, _NEVER)[None, :, None].expand_as(places)
        first = first.scatter_reduce(1, places.flatten(1), when.flatten(1), "amin")
        seen = first.gather(1, places.flatten(1)).view_as(places) < at[:, None]
        taken = (seen.all(-1) & known)[..., None].expand(*tokens.shape, self.context.groups)
        keep = line[:, line.shape[1] - (self.ngram - 1) :]
        return Route.fixed(taken, x.dtype), (first, keep, start + tokens.shape[1])

    def _places(self, line: Tensor) -> Tensor:
        """Bits of the n-gram that ends at every token of the call: [B, ngram - 1 + T] -> [B, T, h]."""
        grams = line.unfold(1, self.ngram, 1)
        mixed = self.hash[-1]
        for i in range(self.ngram):
            mixed = (mixed + (grams[..., i : i + 1] + 1) * self.hash[i]) % _PRIME
        return mixed % self.bits
