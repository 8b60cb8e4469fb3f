"""Which selectors score a unit by itself, so that a causal model could use them, and which look over the sequence."""

from __future__ import annotations

import pytest
import torch

from turnout.routers.content import CONTENT_SELECTORS, ContentSelector, SelectorContext

LENGTH, WIDTH, CHANGED = 32, 16, 20
CAUSAL = (
    "pairwise", "low_rank:rank=4", "rank1", "cosine", "linear_attention", "random_projection", "centroid:clusters=4",
    "exact", "exact:ngram=2,offset=1", "segment:size=4", "bloom:size=4", "position", "bandit", "none",
)  # fmt: skip
LOOKING = ("memory:slots=4", "loop", "budget", "bm25:size=4", "rank1:query=shuffled")


def build(spec: str) -> ContentSelector:
    torch.manual_seed(0)
    context = SelectorContext(width=WIDTH, length=LENGTH, vocab=12)
    return CONTENT_SELECTORS.build(spec, context=context)  # type: ignore[no-any-return]


def past_scores(selector: ContentSelector, *, changed: bool) -> torch.Tensor:
    """Scores of the rows before `CHANGED` for the units that lie wholly before it."""
    source = torch.Generator().manual_seed(1)
    tokens = torch.randint(12, (3, LENGTH), generator=source)
    table = torch.randn(12, WIDTH, generator=source)
    if changed:
        tokens[:, CHANGED:] = (tokens[:, CHANGED:] + 5) % 12
    at = torch.arange(LENGTH).expand(3, -1)
    with torch.no_grad():
        score: torch.Tensor = selector(table[tokens], tokens, at)
    return score[:, :CHANGED, : CHANGED // selector.unit]


def test_every_selector_is_of_one_kind() -> None:
    assert {spec.partition(":")[0] for spec in CAUSAL + LOOKING} == set(CONTENT_SELECTORS.names())
    assert all(build(spec).causal for spec in CAUSAL) and not any(build(spec).causal for spec in LOOKING)


@pytest.mark.parametrize("spec", CAUSAL)
def test_future_tokens_do_not_change_past_scores(spec: str) -> None:
    selector = build(spec)
    assert torch.equal(past_scores(selector, changed=True), past_scores(selector, changed=False))


@pytest.mark.parametrize("spec", ["memory:slots=4", "bm25:size=4"])
def test_what_pools_the_sequence_is_moved_by_its_end(spec: str) -> None:
    selector = build(spec)
    assert not torch.equal(past_scores(selector, changed=True), past_scores(selector, changed=False))
