"""Interactive search as an environment: BM25 over paragraphs, query operators, actions masked to what results contain.

D documents, K documents kept, A actions, F features.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from turnout.errors import ConfigError, DataError
from turnout.probe.hotpot import STOP
from turnout.tasks.hotpotqa import words

OPERATORS = ("or", "must", "not")
K1, B = 1.5, 0.75
# Score that a document loses for missing a `must` term or having a `not` term: more than a term is worth.
PENALTY = 6.0
_CAPITALISED = re.compile(r"\b[A-Z]\w+")


class Index:
    """BM25 over documents, term by term, so that a refined query only adds and subtracts.

        score(d, q) = sum_t idf_t · f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))
        idf_t = log(1 + (D - n_t + .5) / (n_t + .5))

    Raises:
        DataError: no document.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        if not documents:
            raise DataError("there is no document to search; give at least one paragraph")
        self.documents = list(documents)
        self.terms = [Counter(word for word in words(text) if word not in STOP) for text in documents]
        self.capitalised = [frozenset(match.lower() for match in _CAPITALISED.findall(text)) for text in documents]
        # The beginning of a paragraph is its title.
        self.openings = [frozenset(words(text[:60])) for text in documents]
        lengths = np.array([max(1, sum(counts.values())) for counts in self.terms], dtype=np.float64)
        norm = K1 * (1 - B + B * lengths / lengths.mean())
        postings: dict[str, list[tuple[int, int]]] = {}
        for number, counts in enumerate(self.terms):
            for term, count in counts.items():
                postings.setdefault(term, []).append((number, count))
        n = len(documents)
        self.idf = {t: math.log(1 + (n - len(p) + 0.5) / (len(p) + 0.5)) for t, p in postings.items()}
        self.postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, pairs in postings.items():
            ids = np.array([i for i, _ in pairs])
            f = np.array([c for _, c in pairs], dtype=np.float64)
            self.postings[term] = (ids, self.idf[term] * f * (K1 + 1) / (f + norm[ids]))

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """BM25 of every document, float64 [D]; a term that occurs twice counts twice."""
        total = np.zeros(len(self.documents))
        for term in query:
            if term in self.postings:
                ids, weights = self.postings[term]
                total[ids] += weights
        return total

    def refine(self, scores: np.ndarray, operator: str, term: str) -> np.ndarray:
        """Scores of the query with one more operator and term."""
        ids, weights = self.postings[term]
        new = scores.copy()
        if operator == "not":
            new[ids] -= PENALTY
            return new
        new[ids] += weights
        if operator == "must":
            new[ids] += PENALTY
            new -= PENALTY
        return new


def ndcg(ranked: Sequence[int], gold: Sequence[int], k: int) -> float:
    """Normalised discounted cumulative gain of the first k, relevance 0 or 1."""
    gain = sum(1 / math.log2(place + 2) for place, number in enumerate(ranked[:k]) if number in gold)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(gold))))


@dataclass(slots=True)
class Episode:
    """One question being searched for.

    Attributes:
        index, question, gold: what is asked, and the documents that answer it.
        limit: refinements at most.
        scores: of every document under the query so far; used: terms in it.
    """

    index: Index
    question: str
    gold: tuple[int, ...]
    limit: int = 3
    keep: int = 5
    scores: np.ndarray = field(init=False)
    used: set[str] = field(init=False)
    steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.limit < 1 or self.keep < 1:
            raise ConfigError(f"episode limit={self.limit}, keep={self.keep}; expected >= 1")
        query = [word for word in words(self.question) if word not in STOP]
        self.used = set(query)
        self.scores = self.index.scores(query)

    def ranked(self) -> list[int]:
        """The documents kept, best first; ties go to the earlier document."""
        near = np.argpartition(-self.scores, self.keep)[: self.keep] if len(self.scores) > self.keep else None
        found = np.arange(len(self.scores)) if near is None else near
        return [int(i) for i in found[np.lexsort((found, -self.scores[found]))]]

    def quality(self) -> float:
        """nDCG of the documents kept."""
        return ndcg(self.ranked(), self.gold, self.keep)

    def actions(self) -> tuple[list[tuple[str, str] | None], np.ndarray]:
        """What the grammar allows now, and features [A, F] of each; None is [stop], and the first action.

        A term must be in the results, with a positive idf, and not in the query yet.
        """
        ranked = self.ranked()
        seen: dict[str, list[int]] = {}
        for place, number in enumerate(ranked):
            for term in self.index.terms[number]:
                if term not in self.used and self.index.idf[term] > 0:
                    seen.setdefault(term, []).append(place)
        stop = np.zeros(N_FEATURES)
        stop[0] = 1.0
        stop[1] = self.steps / self.limit
        rows, found = [stop], [None]  # type: list[np.ndarray], list[tuple[str, str] | None]
        for term in sorted(seen):
            places = seen[term]
            best = ranked[places[0]]
            about = [
                1.0, self.index.idf[term] / 10, len(places) / self.keep, 1 / (1 + places[0]),
                float(term in self.index.capitalised[best]), math.log1p(self.index.terms[best][term]),
                float(term in self.index.openings[best]), self.steps / self.limit,
            ]  # fmt: skip
            for i, operator in enumerate(OPERATORS):
                row = np.zeros(N_FEATURES)
                row[2 + i * N_ABOUT : 2 + (i + 1) * N_ABOUT] = about
                rows.append(row)
                found.append((operator, term))
        return found, np.stack(rows)

    def step(self, action: tuple[str, str] | None) -> tuple[float, bool]:
        """Take an action: (gain of nDCG, whether the episode is over).

        Raises:
            ConfigError: the term is not one that the mask allows.
        """
        if action is None:
            return 0.0, True
        operator, term = action
        if operator not in OPERATORS or term in self.used or term not in self.index.postings:
            raise ConfigError(f"action {operator} {term!r} is not allowed here; choose one of Episode.actions()")
        before = self.quality()
        self.scores = self.index.refine(self.scores, operator, term)
        self.used.add(term)
        self.steps += 1
        return self.quality() - before, self.steps >= self.limit


N_ABOUT = 8
N_FEATURES = 2 + len(OPERATORS) * N_ABOUT
