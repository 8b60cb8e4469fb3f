"""An agent that refines queries: a small policy over masked actions, imitation of an oracle, then policy gradient.

A actions, F features.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from turnout.search.retrieval import N_FEATURES, Episode, Index

Pick = Callable[[Episode], tuple[str, str] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question and the numbers of the documents that answer it."""

    text: str
    gold: tuple[int, ...]


class Policy(nn.Module):
    """Score of each action from its features: F -> hidden -> 1; a softmax over those that the mask leaves."""

    def __init__(self, hidden: int = 32, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(N_FEATURES, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, features: np.ndarray) -> Tensor:
        """Log probabilities [A]."""
        return self.net(torch.from_numpy(features).float())[:, 0].log_softmax(0)

    def greedy(self, episode: Episode) -> tuple[str, str] | None:
        """The most probable action."""
        actions, features = episode.actions()
        with torch.no_grad():
            return actions[int(self(features).argmax())]


def play(index: Index, question: Question, pick: Pick, *, limit: int = 3) -> tuple[float, float]:
    """nDCG before and after an episode."""
    episode = Episode(index, question.text, question.gold, limit=limit)
    before, over = episode.quality(), False
    while not over:
        _, over = episode.step(pick(episode))
    return before, episode.quality()


def oracle(episode: Episode) -> tuple[str, str] | None:
    """The action with the largest gain of nDCG, stop where none gains; it is told the gold documents."""
    actions, _ = episode.actions()
    base, best, chosen = episode.quality(), 1e-9, None
    kept = episode.scores
    for action in actions[1:]:
        assert action is not None
        episode.scores = episode.index.refine(kept, *action)
        gain = episode.quality() - base
        if gain > best:
            best, chosen = gain, action
    episode.scores = kept
    return chosen


def chance(seed: int) -> Pick:
    """Uniform over the actions that the mask leaves."""
    draw = random.Random(seed)
    return lambda episode: draw.choice(episode.actions()[0])


def feedback(episode: Episode) -> tuple[str, str] | None:
    """Pseudo-relevance feedback without learning: the most informative word of the best document (Rocchio's idea)."""
    best = episode.ranked()[0]
    fresh = [term for term in episode.index.terms[best] if term not in episode.used]
    weight = {term: episode.index.terms[best][term] * episode.index.idf[term] for term in fresh}
    return ("or", max(sorted(weight), key=lambda term: weight[term])) if weight else None


def oracle_episodes(index: Index, questions: Sequence[Question]) -> list[tuple[np.ndarray, int]]:
    """Features of the actions, and the one that the oracle takes, at every step of its episodes."""
    examples: list[tuple[np.ndarray, int]] = []
    for question in questions:
        episode, over = Episode(index, question.text, question.gold), False
        while not over:
            actions, features = episode.actions()
            action = oracle(episode)
            examples.append((features, actions.index(action)))
            _, over = episode.step(action)
    return examples


def imitate(policy: Policy, examples: Sequence[tuple[np.ndarray, int]], *, rate: float = 3e-3, passes: int = 4) -> None:
    """Learn from synthetic episodes, the oracle's on training questions, by cross-entropy."""
    examples = list(examples)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    for number in range(passes):
        random.Random(number).shuffle(examples)
        for start in range(0, len(examples), 16):
            losses = [-policy(features)[wanted] for features, wanted in examples[start : start + 16]]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()


def reinforce(
    policy: Policy, index: Index, questions: Sequence[Question], *, seed: int, passes: int = 4, group: int = 8,
    rate: float = 3e-3, entropy: float = 0.005,
) -> list[float]:  # fmt: skip
    """REINFORCE with the mean of a group of episodes of one question as baseline; the return is the gain of nDCG.

    Returns:
        Mean gain of the sampled episodes, by batch of 16 questions.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    order, curve = list(questions), []
    for number in range(passes):
        random.Random(seed * 101 + number).shuffle(order)
        for start in range(0, len(order), 16):
            losses, gains = [], []
            for question in order[start : start + 16]:
                played = [_sample(policy, index, question, generator) for _ in range(group)]
                mean = sum(gain for gain, _, _ in played) / group
                gains.append(mean)
                losses += [-(gain - mean) * log_p - entropy * spread for gain, log_p, spread in played]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            curve.append(sum(gains) / len(gains))
    return curve


def _sample(
    policy: Policy, index: Index, question: Question, generator: torch.Generator
) -> tuple[float, Tensor, Tensor]:
    episode, over = Episode(index, question.text, question.gold), False
    gain, log_p, spread = 0.0, torch.zeros(()), torch.zeros(())
    while not over:
        actions, features = episode.actions()
        log_share = policy(features)
        chosen = int(torch.multinomial(log_share.detach().exp(), 1, generator=generator))
        log_p = log_p + log_share[chosen]
        spread = spread - (log_share.exp() * log_share).sum()
        more, over = episode.step(actions[chosen])
        gain += more
    return gain, log_p, spread
