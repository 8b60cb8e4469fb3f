"""Bloom-filter query router: a token attends if there may be something to recall.

B batch, T tokens, M bits, h hashes, C positions that a bit remembers (1, or `most` + 1).
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
# Later than any position: nobody set the bit (so often).
_NEVER = 2**62


@QUERY_ROUTERS.register("bloom")
class BloomRouter(QueryRouter):
    """Take a token if its last `ngram` tokens may have occurred before in the sequence; nothing is learned.

        n_t = least number, over the h bits of hash(x_{t-ngram+1..t}), of positions before t that set the bit
        taken_t = n_t >= 1, and with `most` ("seen and rare") n_t <= most;  then t sets them

    A Bloom filter (Bloom 1970) never misses: a token that repeats always attends. With n distinct n-grams stored it
    errs at rate (1 - e^(-h·n/M))^h. One that counts (Fan et al. 2000) never counts too few: what occurred more than
    `most` times stays shut for certain; a rare n-gram is missed, or a new one taken, only where others have set all of
    its bits, at that rate. All tokens of a call are decided at once: a bit remembers the first C positions that set it,
    and how many of them lie below t is its count before t.

    Args:
        ngram: tokens that must repeat together, >= 1.
        most: take an n-gram that occurred 1 to `most` times before; 0 = however often.
        bits, hashes: M, shared by a sequence, and h, both >= 1.
        max_error: highest rate at which a full filter may err, f^h for the fraction f of bits that are set.
    Raises:
        UnsupportedError: the pass has no token ids (`RoutingMode.tokens`; a model fills it in).
        ConfigError: a filter of the pass errs more often; not looked up in training steps on a GPU, which it delays.
    Cost: O(h·C) per token. State: positions int64 [B, C, M], ascending; the last ngram - 1 tokens; the tokens seen.
    """

    learned = False
    hash: Tensor

    def __init__(
        self, context: RouterContext, *, ngram: int = 1, most: int = 0, bits: int = 8192, hashes: int = 4,
        max_error: float = 0.05,
    ) -> None:  # fmt: skip
        super().__init__(context)
        for name, value, least in (("ngram", ngram, 1), ("most", most, 0), ("bits", bits, 1), ("hashes", hashes, 1)):
            if value < least:
                raise ConfigError(f"router bloom: {name}={value}; expected >= {least}")
        if not 0 < max_error <= 1:
            raise ConfigError(f"router bloom: max_error={max_error}; expected a rate 0 < max_error <= 1")
        self.ngram, self.most, self.bits, self.max_error = ngram, most, bits, max_error
        drawn = torch.randint(1, _PRIME, (ngram + 1, hashes), generator=torch.Generator().manual_seed(0))
        self.register_buffer("hash", drawn, persistent=False)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return (
            torch.full((batch, self.most + 1, self.bits), _NEVER, device=device),
            torch.full((batch, self.ngram - 1), -1, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        if mode.tokens is None:
            raise UnsupportedError("router bloom decides by token ids and got none; pass RoutingMode(tokens=...)")
        tokens = mode.tokens
        nth, tail, start = state or self.init_state(len(x), device=x.device, dtype=x.dtype)
        line = torch.cat((tail, tokens), dim=1)
        places = self._places(line)
        at = start + torch.arange(tokens.shape[1], device=x.device)
        # No n-gram ends before position ngram - 1.
        known = at >= self.ngram - 1
        when = torch.where(known, at, _NEVER)[None, :, None].expand_as(places)
        nth = _remember(nth, places.flatten(1), when.flatten(1))
        self._check_error(nth[:, 0])
        found = nth.gather(2, places.flatten(1)[:, None].expand(-1, nth.shape[1], -1)).unflatten(2, places.shape[1:])
        count = (found < at[:, None]).sum(1).amin(-1)
        taken = known & (count >= 1) & (count <= max(1, self.most))
        keep = line[:, line.shape[1] - (self.ngram - 1) :]
        route = Route.fixed(taken[..., None].expand(*tokens.shape, self.context.groups), x.dtype)
        return route, (nth, keep, start + tokens.shape[1])

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


def _remember(nth: Tensor, places: Tensor, when: Tensor) -> Tensor:
    """The first C positions of every bit [B, C, M] once `when` [B, N] have set `places` [B, N]."""
    rows: list[Tensor] = []
    for row in nth.unbind(1):
        # Position c of a bit is the first one after its position c - 1; what is remembered precedes what comes.
        later = torch.where(when > rows[-1].gather(1, places), when, _NEVER) if rows else when
        rows.append(row.scatter_reduce(1, places, later, "amin"))
    return torch.stack(rows, 1)
