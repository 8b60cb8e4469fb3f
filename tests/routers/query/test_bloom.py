"""The Bloom router opens exactly where an n-gram may have occurred before (a few times), in pieces as in the whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from turnout.errors import ConfigError, UnsupportedError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QUERY_ROUTERS, RouterContext


def taken(tokens: Tensor, *, sizes: tuple[int, ...] = (), **options: Any) -> Tensor:
    """Decisions of a router that reads `tokens` whole, or in pieces of `sizes`."""
    router = QUERY_ROUTERS.get("bloom")(RouterContext(width=4), **options).to(tokens.device).eval()
    state, parts = None, []
    for piece in tokens.split(sizes or (tokens.shape[1],), dim=1):
        route, state = router(
            torch.zeros(*piece.shape, 4, device=piece.device), mode=RoutingMode(tokens=piece), state=state
        )
        parts.append(route.taken[..., 0])
    return torch.cat(parts, 1)


def drawn(ids: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(ids, (4, length), generator=torch.Generator().manual_seed(seed))


def counts(tokens: Tensor, ngram: int) -> Tensor:
    """By brute force: how often did the last `ngram` tokens occur before?"""
    found = torch.zeros(tokens.shape, dtype=torch.int64)
    for b, line in enumerate(tokens.tolist()):
        before: Counter[tuple[int, ...]] = Counter()
        for t in range(ngram - 1, len(line)):
            gram = tuple(line[t - ngram + 1 : t + 1])
            found[b, t] = before[gram]
            before[gram] += 1
    return found


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_a_wide_filter_opens_where_an_ngram_repeats_and_nowhere_else(ngram: int) -> None:
    tokens = drawn(5, 60, seed=ngram)
    want = counts(tokens, ngram) > 0
    assert want.any() and not want.all()
    assert torch.equal(taken(tokens, ngram=ngram, bits=2**20), want)


@pytest.mark.parametrize(("ngram", "most"), [(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (3, 1)])
def test_a_wide_counting_filter_opens_where_an_ngram_occurred_a_few_times_before(ngram: int, most: int) -> None:
    tokens = drawn(5, 60, seed=most)
    count = counts(tokens, ngram)
    assert (count > most).any()
    want = (count >= 1) & (count <= most)
    assert torch.equal(taken(tokens, ngram=ngram, most=most, bits=2**20), want)


@pytest.mark.parametrize(("ngram", "most", "bits"), [(1, 0, 8192), (1, 1, 8192), (1, 2, 64), (2, 2, 8192), (3, 2, 128)])
def test_pieces_are_decided_like_the_whole(ngram: int, most: int, bits: int) -> None:
    # Narrow filters too: what they get wrong, they get wrong alike.
    tokens, options = drawn(5, 60), {"ngram": ngram, "most": most, "bits": bits, "max_error": 1.0}
    whole = taken(tokens, **options)
    assert whole.any() and not whole.all()
    for sizes in ((1,) * 60, (1, 30, 29), (2, 1, 57)):
        assert torch.equal(taken(tokens, sizes=sizes, **options), whole)


def test_a_narrow_counting_filter_never_counts_too_few() -> None:
    ids, length, bits, hashes, most = 40, 200, 64, 2, 2
    tokens = torch.randint(ids, (50, length), generator=torch.Generator().manual_seed(0))
    count, options = counts(tokens, 1), {"bits": bits, "hashes": hashes, "max_error": 1.0}
    seen, rare = taken(tokens, **options), taken(tokens, most=most, **options)
    often, few = count > most, (count >= 1) & (count <= most)
    assert not rare[often].any() and not (rare & ~seen).any()
    # It errs in both of the other ways: new tokens that it takes, rare ones that it misses.
    assert rare[count == 0].any() and not rare[few].all()
    # A miss needs other tokens on every bit: at most the others' ids, on h bits of M, as for a token that is new.
    rate = (1 - (1 - 1 / bits) ** (hashes * (ids - 1))) ** hashes
    misses = (~rare[few]).double()
    assert float(misses.mean()) <= rate + 4 * (rate * (1 - rate) / len(tokens)) ** 0.5


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
    for options, least in (({"ngram": 0}, 1), ({"bits": 0}, 1), ({"hashes": 0}, 1), ({"most": -1}, 0)):
        with pytest.raises(ConfigError, match=f"expected >= {least}"):
            taken(torch.zeros(1, 3, dtype=torch.int64), **options)
    with pytest.raises(UnsupportedError, match="decides by token ids"):
        QUERY_ROUTERS.get("bloom")(RouterContext(width=4))(torch.zeros(1, 3, 4), mode=RoutingMode())


@pytest.mark.gpu
@pytest.mark.parametrize(("ngram", "most", "bits"), [(1, 0, 8192), (2, 0, 8192), (1, 2, 8192), (1, 2, 128)])
def test_a_gpu_decides_as_a_cpu_does_whole_and_in_pieces(ngram: int, most: int, bits: int) -> None:
    tokens, options = drawn(40, 500), {"ngram": ngram, "most": most, "bits": bits, "max_error": 1.0}
    want = taken(tokens, **options)
    for sizes in ((), (100, 1, 399)):
        assert torch.equal(taken(tokens.cuda(), sizes=sizes, **options).cpu(), want)
