from __future__ import annotations

import pytest
import torch

from turnout.errors import ConfigError, UnsupportedError
from turnout.ops.attend import attend
from turnout.routers.content import CONTENT_SELECTORS, ContentSelector, SelectorContext
from turnout.routers.content.keys import causal_keys

LENGTH, WIDTH = 32, 16
CAUSAL = (
    "pairwise", "low_rank:rank=4", "rank1", "cosine", "linear_attention", "random_projection", "centroid:clusters=4",
    "exact", "exact:ngram=2,offset=1", "segment:size=4", "bloom:size=4", "position", "bandit", "none",
)  # fmt: skip
REFUSED = ("memory:slots=4", "loop", "budget", "bm25:size=4", "rank1:query=shuffled")


def build(spec: str) -> ContentSelector:
    torch.manual_seed(0)
    context = SelectorContext(width=WIDTH, length=LENGTH, vocab=12)
    return CONTENT_SELECTORS.build(spec, context=context)  # type: ignore[no-any-return]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (3, LENGTH), generator=source)
    return torch.randn(12, WIDTH, generator=source)[tokens], tokens


def test_every_selector_is_either_causal_or_refused() -> None:
    assert {spec.partition(":")[0] for spec in CAUSAL + REFUSED} == set(CONTENT_SELECTORS.names())


@pytest.mark.parametrize("spec", CAUSAL)
def test_future_tokens_do_not_change_past_keys(spec: str) -> None:
    selector, (x, tokens) = build(spec), inputs()
    keys = causal_keys(selector, x, tokens, k=3, expand=1)
    assert (keys[:, :, 0] <= torch.arange(LENGTH)[:, None]).all()
    other, changed = x.clone(), tokens.clone()
    other[:, 20:] += 1.0
    changed[:, 20:] = (changed[:, 20:] + 5) % 12
    assert torch.equal(causal_keys(selector, other, changed, k=3, expand=1)[:, :20], keys[:, :20])


@pytest.mark.parametrize("spec", REFUSED)
def test_selectors_that_read_the_whole_sequence_are_refused(spec: str) -> None:
    with pytest.raises(UnsupportedError, match="later tokens"):
        causal_keys(build(spec), *inputs(), k=2)


def test_keeping_every_key_is_dense_attention() -> None:
    x, tokens = inputs()
    q, k, v = (torch.randn(3, LENGTH, 2, 8, dtype=torch.float64) for _ in range(3))
    keys = causal_keys(build("pairwise"), x, tokens, k=LENGTH).expand(-1, -1, 2, -1)
    eps = torch.finfo(torch.float64).eps
    assert (attend(q, k, v, keys=keys) - attend(q, k, v)).abs().max() < LENGTH * 8 * eps * float(v.abs().max())


def test_an_exact_index_reads_what_followed_the_last_match() -> None:
    tokens = torch.tensor([[3, 7, 1, 2, 5, 4, 6, 3] + [0] * 24])
    keys = causal_keys(build("exact:offset=1"), torch.zeros(1, LENGTH, WIDTH), tokens, k=2)
    # Token 3 at position 7 was seen at 0: its follower, and itself; token 4 was never seen.
    assert sorted(keys[0, 7, 0].tolist()) == [-1, 1, 7]
    assert sorted(keys[0, 5, 0].tolist()) == [-1, -1, 5]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="k=0"):
        causal_keys(build("pairwise"), *inputs(), k=0)
