"""The Bloom router opens exactly where an n-gram may have occurred before, in pieces as in the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from turnout.errors import ConfigError, UnsupportedError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QUERY_ROUTERS, RouterContext


def taken(tokens: Tensor, **options: Any) -> Tensor:
    router = QUERY_ROUTERS.get("bloom")(RouterContext(width=4), **options)
    x = torch.zeros(*tokens.shape, 4)
    return router(x, mode=RoutingMode(tokens=tokens))[0].taken[..., 0]


def repeats(tokens: Tensor, ngram: int) -> Tensor:
    """By brute force: did the last `ngram` tokens occur before?"""
    found = torch.zeros(tokens.shape, dtype=torch.bool)
    for b, line in enumerate(tokens.tolist()):
        grams: set[tuple[int, ...]] = set()
        for t in range(ngram - 1, len(line)):
            gram = tuple(line[t - ngram + 1 : t + 1])
            found[b, t] = gram in grams
            grams.add(gram)
    return found


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_a_wide_filter_opens_where_an_ngram_repeats_and_nowhere_else(ngram: int) -> None:
    tokens = torch.randint(5, (4, 60), generator=torch.Generator().manual_seed(ngram))
    want = repeats(tokens, ngram)
    assert want.any() and not want.all()
    assert torch.equal(taken(tokens, ngram=ngram, bits=2**20), want)


def test_a_narrow_filter_never_misses_and_errs_at_about_the_known_rate() -> None:
    n, bits, hashes = 64, 256, 2
    tokens = torch.stack([torch.randperm(10_000, generator=torch.Generator().manual_seed(i))[:n] for i in range(300)])
    # The last token has n - 1 distinct ones before it.
    errs = taken(tokens, bits=bits, hashes=hashes, max_error=1.0)[:, -1].double()
    rate = (1 - (1 - 1 / bits) ** (hashes * (n - 1))) ** hashes
    slack = 4 * (rate * (1 - rate) / len(tokens)) ** 0.5
    assert abs(float(errs.mean()) - rate) <= slack
    twice = torch.cat((tokens, tokens), 1)
    assert bool(taken(twice, bits=bits, hashes=hashes, max_error=1.0)[:, n:].all())


def test_a_filter_that_overflows_its_error_rate_says_so_and_one_that_repeats_does_not() -> None:
    distinct = torch.arange(64)[None]
    with pytest.raises(ConfigError, match=r"256 bits errs at a rate of 0\.\d+ .*above max_error=0.05; use more bits"):
        taken(distinct, bits=256, hashes=2)
    # The same length of few different tokens fills little.
    assert taken(distinct % 8, bits=256, hashes=2)[:, 8:].all()
    for rate in (0.0, 1.5):
        with pytest.raises(ConfigError, match="max_error"):
            taken(distinct, max_error=rate)


def test_impossible_filters_and_passes_without_tokens_are_refused() -> None:
    for options in ({"ngram": 0}, {"bits": 0}, {"hashes": 0}):
        with pytest.raises(ConfigError, match="expected >= 1"):
            taken(torch.zeros(1, 3, dtype=torch.int64), **options)
    with pytest.raises(UnsupportedError, match="decides by token ids"):
        QUERY_ROUTERS.get("bloom")(RouterContext(width=4))(torch.zeros(1, 3, 4), mode=RoutingMode())
