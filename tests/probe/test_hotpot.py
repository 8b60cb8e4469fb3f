from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

import pytest
import torch

from turnout.probe.hotpot import bloom_ranker, bm25_ranker, chance, evaluate, simple_rankers
from turnout.probe.hotpot_learned import TextVectors, cosine_ranker, selector_ranker, train_selector
from turnout.tasks.hotpotqa import RoutingQuestion

TOWNS = [f"town{i}" for i in range(40)]


def questions(n: int = 40, units: int = 8) -> list[RoutingQuestion]:
    source = random.Random(0)
    found = []
    for i in range(n):
        named = source.sample(TOWNS, units)
        gold = source.randrange(units)
        texts = tuple(f"{town} station opened beside the river" for town in named)
        found.append(RoutingQuestion(id=str(i), text=f"When did {named[gold]} open?", units=texts, gold=(gold,)))
    return found


def test_bm25_does_not_start_jax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optional = "try:\n    import jax\nexcept ImportError:\n    jax = None\n"
    for name, text in (("jax", ""), ("bm25s", optional)):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    bm25_ranker()
    assert sys.modules["bm25s"].jax is None and "jax" not in sys.modules
    assert importlib.import_module("jax").__file__ == str(tmp_path / "jax.py")


@pytest.mark.parametrize("name", ["bm25", "bloom", "overlap"])
def test_lexical_rankers_find_the_unit_that_shares_a_rare_word(name: str) -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("rbloom")
    ranker = {"bm25": bm25_ranker, "bloom": bloom_ranker, "overlap": lambda: simple_rankers()["word overlap"]}[name]()
    found = evaluate(questions(), ranker, picks=2)
    # A Bloom filter may claim a word it never saw: one question in a hundred per unit.
    assert found["any_hit"] >= 0.95 and found["n"] == 40


def test_random_scores_meet_the_exact_chance() -> None:
    items = questions(400)
    found = evaluate(items, lambda q: [0.0] * len(q.units), picks=2)
    expected = chance(items, 2)
    assert expected["any_hit"] == pytest.approx(0.25)
    # Binomial, four standard errors.
    assert abs(found["any_hit"] - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert expected["all_hit"] == pytest.approx(0.25) and expected["recall"] == pytest.approx(0.25)


def test_a_trained_selector_beats_chance_and_vectors_are_unit_length() -> None:
    items = questions(60)
    vectors = TextVectors(items, width=32)
    assert torch.allclose(vectors(items[0].units[0]).norm(), torch.tensor(1.0))
    assert vectors("unknown words only").norm() == 0
    selector = train_selector("cosine", [vectors.table(q) for q in items], [q.gold for q in items], steps=60)
    assert evaluate(items, selector_ranker(selector, vectors))["any_hit"] > 0.5
    assert evaluate(items, cosine_ranker(vectors))["any_hit"] > 0.5
