"""Interactive search: BM25 by its formula, a mask that is kept, rewards that add up, an agent that finds a rule."""

from __future__ import annotations

import math
import random

import pytest

from turnout.errors import ConfigError, DataError
from turnout.search.agent import Policy, Question, chance, feedback, imitate, oracle, oracle_episodes, play, reinforce
from turnout.search.retrieval import K1, B, Episode, Index, ndcg

TEXTS = ["red apple tree", "green apple apple", "blue sky over Paris", "Paris is red"]


def test_scores_are_those_of_the_formula() -> None:
    index = Index(TEXTS)
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    mean = (3 + 3 + 4 + 2) / 4
    want = [idf * f * (K1 + 1) / (f + K1 * (1 - B + B * n / mean)) for f, n in ((1, 3), (2, 3))]
    assert index.scores(["apple"]).tolist() == pytest.approx([*want, 0, 0])
    assert index.refine(index.scores(["apple"]), "not", "green").argmax() == 0
    assert index.refine(index.scores(["apple"]), "must", "paris").argmax() in (2, 3)
    with pytest.raises(DataError, match="no document to search"):
        Index([])


def test_ndcg_counts_early_documents_most() -> None:
    assert ndcg([1, 2, 3], [1, 2], 3) == 1
    assert ndcg([3, 1, 2], [1, 2], 3) == pytest.approx((1 / math.log2(3) + 0.5) / (1 + 1 / math.log2(3)))
    assert ndcg([3, 4], [1], 2) == 0


def test_actions_are_terms_of_the_results_that_the_query_has_not() -> None:
    index = Index([*TEXTS, "nothing in common"])
    episode = Episode(index, "apple", (0,), keep=2)
    actions, features = episode.actions()
    assert actions[0] is None and len(actions) == len(features)
    assert {action[1] for action in actions if action} == {"red", "tree", "green"}
    with pytest.raises(ConfigError, match="'apple' is not allowed here"):
        episode.step(("or", "apple"))
    with pytest.raises(ConfigError, match="limit=0"):
        Episode(index, "apple", (0,), limit=0)


def hidden_rule(n: int, seed: int) -> tuple[Index, list[Question]]:
    """Bridges: the question names a person, whose page names a town in capitals, whose page is wanted too."""
    draw = random.Random(seed)
    texts, questions = [], []
    for i in range(n):
        filler = " ".join(f"w{draw.randrange(40)}" for _ in range(6))
        noise = " ".join(f"x{draw.randrange(n)}" for _ in range(3))
        texts += [f"person{i} {filler} {noise} Town{i}", f"{filler} Town{i} {noise}", f"person{i} {filler} {noise}"]
        questions.append(Question(text=f"where is person{i}", gold=(3 * i, 3 * i + 1)))
    return Index(texts), questions


def gain(pick: object, index: Index, questions: list[Question]) -> float:
    pairs = [play(index, question, pick) for question in questions]  # type: ignore[arg-type]
    return sum(after - before for before, after in pairs) / len(pairs)


def test_rewards_add_up_to_the_gain_of_the_episode() -> None:
    index, questions = hidden_rule(20, 0)
    episode, total, over = Episode(index, questions[0].text, questions[0].gold), 0.0, False
    before, pick = episode.quality(), chance(3)
    while not over:
        more, over = episode.step(pick(episode))
        total += more
    assert total == pytest.approx(episode.quality() - before)


def test_an_agent_finds_the_rule_that_chance_does_not() -> None:
    index, questions = hidden_rule(24, 0)
    policy = Policy(seed=0)
    reinforce(policy, index, questions[:12], seed=0, passes=8, group=4, rate=5e-2)
    held = questions[12:]
    best = gain(oracle, index, held)
    assert gain(policy.greedy, index, held) > 0.8 * best > 0
    assert gain(chance(0), index, held) < 0.3 * best


def test_imitation_comes_near_the_oracle() -> None:
    index, questions = hidden_rule(40, 1)
    policy = Policy(seed=0)
    imitate(policy, oracle_episodes(index, questions[:20]), rate=1e-2, passes=60)
    assert gain(policy.greedy, index, questions[20:]) > 0.8 * gain(oracle, index, questions[20:])
    assert isinstance(gain(feedback, index, questions[20:]), float)
