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
        max_error: highest rate at which a full filter may err, f^h for the fraction f of bits that are set.
    Raises:
        UnsupportedError: the pass has no token ids (`RoutingMode.tokens`; a model fills it in).
        ConfigError: a filter of the pass errs more often. Looked up wherever that costs no wait for a GPU, and in
            evaluation; not in training steps on a GPU.
    Cost: O(h) per token. State: first positions int64 [B, M], the last ngram - 1 tokens, the number of tokens seen.
    """

    learned = False
    hash: Tensor

    def __init__(
        self, context: RouterContext, *, ngram: int = 1, bits: int = 8192, hashes: int = 4, max_error: float = 0.05
    ) -> None:
        super().__init__(context)
        for name, value in (("ngram", ngram), ("bits", bits), ("hashes", hashes)):
            if value < 1:
                raise ConfigError(f"router bloom: {name}={value}; expected >= 1")
        if not 0 < max_error <= 1:
            raise ConfigError(f"router bloom: max_error={max_error}; expected a rate 0 < max_error <= 1")
        self.ngram, self.bits, self.max_error = ngram, bits, max_error
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
        self._check_error(first)
        seen = first.gather(1, places.flatten(1)).view_as(places) < at[:, None]
        taken = (seen.all(-1) & known)[..., None].expand(*tokens.shape, self.context.groups)
        keep = line[:, line.shape[1] - (self.ngram - 1) :]
        return Route.fixed(taken, x.dtype), (first, keep, start + tokens.shape[1])

    def _check_error(self, first: Tensor) -> None:
        busy = first.is_cuda and (self.training or torch.cuda.is_current_stream_capturing())
        if busy or torch.compiler.is_compiling():
            return
        rate = float((first < _NEVER).double().mean(1).max()) ** self.hash.shape[1]
        if rate > self.max_error:
            raise ConfigError(
                f"router bloom: a filter of {self.bits} bits errs at a rate of {rate:.3g} on these sequences, above "
                f"max_error={self.max_error:g}; use more bits, or allow it with max_error"
            )

    def _places(self, line: Tensor) -> Tensor:
        """Bits of the n-gram that ends at every token of the call: [B, ngram - 1 + T] -> [B, T, h]."""
        grams = line.unfold(1, self.ngram, 1)
        mixed = self.hash[-1]
        for i in range(self.ngram):
            mixed = (mixed + (grams[..., i : i + 1] + 1) * self.hash[i]) % _PRIME
        return mixed % self.bits
