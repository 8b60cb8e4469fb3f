"""Routing on real questions: rankers over the units of a HotpotQA context, indices and learned, with the exact chance.

N questions, U units, E embedding width.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from turnout.errors import UnsupportedError
from turnout.ops.precision import hypergeometric_any
from turnout.tasks.hotpotqa import RoutingQuestion, words

Ranker = Callable[[RoutingQuestion], Sequence[float]]

# Words that carry no content in a question; a short list, so that BM25's idf has something to do.
STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "by",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "in",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "she",
        "that",
        "the",
        "their",
        "them",
        "they",
        "this",
        "to",
        "was",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
    ]
)


def content_words(text: str) -> list[str]:
    """Lower-case words without stop words."""
    return [word for word in words(text) if word not in STOP]


def bm25_ranker(k1: float = 1.5, b: float = 0.75) -> Ranker:
    """BM25 by `bm25s` over the units of the question's own context."""
    bm25s = _import_bm25s()

    def rank(question: RoutingQuestion) -> Sequence[float]:
        index = bm25s.BM25(k1=k1, b=b)
        index.index([content_words(unit) or ["_"] for unit in question.units], show_progress=False)
        known = [word for word in content_words(question.text) if word in index.vocab_dict]
        scores: list[float] = index.get_scores(known).tolist() if known else [0.0] * len(question.units)
        return scores

    return rank


def _import_bm25s() -> Any:
    """`bm25s` without JAX, which it would start for a ranking that is not asked of it.

    Where JAX is installed, starting it takes three quarters of a GPU's memory.
    """
    unseen = "jax" not in sys.modules
    if unseen:
        sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        import bm25s
    except ImportError as error:
        raise UnsupportedError("BM25 needs bm25s; install it with: pip install 'turnout[retrieval]'") from error
    finally:
        if unseen:
            del sys.modules["jax"]
    return bm25s


def bloom_ranker(ngram: int = 1, error: float = 0.01) -> Ranker:
    """Share of the question's word n-grams that a Bloom filter of the unit (`rbloom`) claims to hold."""
    try:
        import rbloom
    except ImportError as problem:
        raise UnsupportedError(
            "Bloom filters need rbloom; install it with: pip install 'turnout[retrieval]'"
        ) from problem

    def grams(text: str) -> list[str]:
        found = content_words(text)
        return [" ".join(found[i : i + ngram]) for i in range(len(found) - ngram + 1)]

    def rank(question: RoutingQuestion) -> Sequence[float]:
        asked, scores = set(grams(question.text)), []
        for unit in question.units:
            inside = grams(unit)
            table = rbloom.Bloom(max(1, len(inside)), error)
            table.update(inside)
            scores.append(sum(gram in table for gram in asked) / max(1, len(asked)))
        return scores

    return rank


def simple_rankers() -> dict[str, Ranker]:
    """Baselines that need no index."""

    def overlap(question: RoutingQuestion) -> Sequence[float]:
        asked = set(content_words(question.text))
        return [len(asked & set(content_words(unit))) for unit in question.units]

    return {
        "first units": lambda q: [-i for i in range(len(q.units))],
        "longest units": lambda q: [len(words(unit)) for unit in q.units],
        "word overlap": overlap,
    }


def route(question: RoutingQuestion, scores: Sequence[float], picks: int, source: random.Random) -> set[int]:
    """The `picks` best units; ties are broken at random."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], source.random()))
    return set(order[:picks])


def evaluate(questions: Sequence[RoutingQuestion], ranker: Ranker, *, picks: int = 2, seed: int = 0) -> dict[str, Any]:
    """any_hit: a supporting unit is among the picks; all_hit: all of them are; recall: share of them."""
    source = random.Random(seed)
    any_hit = all_hit = 0
    recall = 0.0
    for question in questions:
        chosen, gold = route(question, ranker(question), picks, source), set(question.gold)
        any_hit += bool(chosen & gold)
        all_hit += gold <= chosen
        recall += len(chosen & gold) / len(gold)
    n = len(questions)
    return {"any_hit": any_hit / n, "all_hit": all_hit / n, "recall": recall / n, "n": n}


def chance(questions: Sequence[RoutingQuestion], picks: int = 2) -> dict[str, float]:
    """Exact expectation of a random choice, question by question."""
    n = len(questions)
    any_hit = sum(hypergeometric_any(len(q.units), len(q.gold), min(picks, len(q.units))) for q in questions) / n
    all_hit = 0.0
    for q in questions:
        share = 1.0
        for i in range(len(q.gold)):
            share *= max(0, picks - i) / (len(q.units) - i)
        all_hit += share / n
    recall = sum(min(picks, len(q.units)) / len(q.units) for q in questions) / n
    return {"any_hit": any_hit, "all_hit": all_hit, "recall": recall}
