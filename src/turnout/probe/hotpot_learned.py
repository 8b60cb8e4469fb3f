"""Learned selectors on HotpotQA units: dense vectors of words (no pretrained weights), then any content selector.

N questions, U units, E width, V words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from turnout.probe.hotpot import Ranker, content_words
from turnout.routers.content import CONTENT_SELECTORS, ContentSelector, SelectorContext
from turnout.tasks.hotpotqa import RoutingQuestion


class TextVectors:
    """Latent semantic vectors: TF-IDF over the training units, projected on its top singular directions.

    x = normalize(Vᵀ tfidf(text)): the dense-embedding baseline that needs nothing but the training split.

    Args:
        questions: training split; only their units are read, never the labels.
        width: E.
        vocab: most frequent words kept.
    """

    def __init__(
        self, questions: Sequence[RoutingQuestion], *, width: int = 128, vocab: int = 8000, seed: int = 0
    ) -> None:
        texts = [content_words(unit) for question in questions for unit in question.units]
        count = Counter(word for text in texts for word in set(text))
        self.index = {word: i for i, (word, _) in enumerate(count.most_common(vocab))}
        self.idf = torch.tensor([len(texts) / count[word] for word in self.index]).log()
        rows = torch.zeros(len(texts), len(self.index))
        for row, text in zip(rows, texts, strict=True):
            places, weights = self._tfidf(text)
            row[places] = weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, _, directions = torch.svd_lowrank(rows, q=width, niter=3)
        self.directions = directions
        self._tables: dict[RoutingQuestion, Tensor] = {}

    def _tfidf(self, text: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The words that are known and their weights, of unit length together."""
        known = {self.index[word]: times for word, times in Counter(text).items() if word in self.index}
        places = torch.tensor(list(known), dtype=torch.int64)
        weights = (1 + torch.tensor(list(known.values()), dtype=torch.float32).log()) * self.idf[places]
        return places, weights / weights.norm().clamp(min=1e-6)

    def __call__(self, text: str) -> Tensor:
        """[E], unit length (zero where no word is known)."""
        places, weights = self._tfidf(content_words(text))
        vector = weights @ self.directions[places]
        return vector / vector.norm().clamp(min=1e-6)

    def table(self, question: RoutingQuestion) -> Tensor:
        """Units and, last, the question: [U + 1, E]; remembered, because every selector asks for it."""
        if question not in self._tables:
            texts = (*question.units, question.text)
            self._tables[question] = torch.stack([self(text) for text in texts])
        return self._tables[question]


def cosine_ranker(vectors: TextVectors) -> Ranker:
    """Cosine of the dense vectors, nothing trained on labels."""
    return lambda question: (vectors.table(question)[:-1] @ vectors(question.text)).tolist()


def train_selector(
    spec: str,
    tables: Sequence[Tensor],
    gold: Sequence[Sequence[int]],
    *,
    steps: int = 400,
    lr: float = 3e-3,
    seed: int = 0,
) -> ContentSelector:
    """Train a content selector whose tokens are units and whose query is the question.

    The loss is the cross entropy to the uniform distribution over the gold units; the question is the last position.

    Args:
        spec: of the selector, "pairwise", "low_rank:rank=16", "cosine", ...
        tables: [U + 1, E] of each training question; U may differ.
        gold: units of each.
    """
    longest, width = max(len(t) for t in tables), tables[0].shape[1]
    x = torch.zeros(len(tables), longest, width)
    wanted = torch.zeros(len(tables), longest)
    valid = torch.zeros(len(tables), longest, dtype=torch.bool)
    for i, (table, units) in enumerate(zip(tables, gold, strict=True)):
        x[i, : len(table) - 1], x[i, -1] = table[:-1], table[-1]
        wanted[i, list(units)] = 1 / len(units)
        valid[i, : len(table) - 1] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        context = SelectorContext(width=width, length=longest, vocab=1)
        selector: ContentSelector = CONTENT_SELECTORS.build(spec, context=context)
    optim = torch.optim.AdamW(selector.parameters(), lr=lr, weight_decay=0.01)
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,), generator=source)
        score = _scores(selector, x[rows]).masked_fill(~valid[rows], -1e9)
        loss = -(wanted[rows] * score.log_softmax(-1)).sum(-1).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    return selector.eval()


def selector_ranker(selector: ContentSelector, vectors: TextVectors) -> Ranker:
    """Scores of a trained selector as a ranker."""

    @torch.no_grad()
    def rank(question: RoutingQuestion) -> Sequence[float]:
        scores: list[float] = _scores(selector, vectors.table(question)[None])[0, :-1].tolist()
        return scores

    return rank


def _scores(selector: ContentSelector, x: Tensor) -> Tensor:
    """[N, U + 1] scores of the last position's query."""
    at = torch.full((len(x), 1), x.shape[1] - 1)
    return selector.score(x, torch.zeros(x.shape[:2], dtype=torch.int64), at)[:, 0]
