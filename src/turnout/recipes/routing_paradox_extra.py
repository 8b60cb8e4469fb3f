"""Routing-paradox arms that do not train the test bed: bandits, and real questions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnout.tasks import RetrievalConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BanditRunConfig:
    """One bandit on raw embeddings.

    Args:
        seed: of data, embeddings and exploration.
        kind: linucb, thompson or oful.
        alphas: strengths of exploration, one run each.
        length: T; width: E.
        pulls: sequences, one pull each.
        within: choose inside the evidence's segment only; 0 = all tokens.
        label: evidence is the "key" or the "value".
    """

    seed: int = 0
    kind: str = "linucb"
    alphas: tuple[float, ...] = (0.0, 0.1, 1.0)
    length: int = 64
    width: int = 32
    pulls: int = 8000
    within: int = 0
    label: str = "key"


@dataclass(frozen=True, kw_only=True, slots=True)
class HotpotRunConfig:
    """All rankers on one way of cutting the contexts.

    Args:
        seed: of tie-breaks and of learned selectors.
        unit: segments, sentences or paragraphs.
        picks: units chosen.
        folder: with two files that have train and test in their names, or "hub:NAME" of a dataset of the hub.
        most_train: training questions that are read; the dense vectors hold all their units at once.
        selectors: learned content selectors.
    """

    seed: int = 0
    unit: str = "segments"
    picks: int = 2
    folder: str = ""
    most_train: int = 2000
    selectors: tuple[str, ...] = ("pairwise", "low_rank:rank=16", "cosine", "linear_attention", "rank1")


def hotpot(seed: int, unit: str) -> HotpotRunConfig:
    """The folder is named by the variable TURNOUT_HOTPOT, `data/hotpotqa` without it."""
    return HotpotRunConfig(seed=seed, unit=unit, folder=os.environ.get("TURNOUT_HOTPOT", "data/hotpotqa"))


def run_bandits(configs: Sequence[BanditRunConfig], device: str) -> list[dict[str, Any]]:
    """One record a seed; `runs` has one entry per alpha. Runs on the CPU whatever the device."""
    return [_run_bandit(config) for config in configs]


def _run_bandit(config: BanditRunConfig) -> dict[str, Any]:
    import torch

    from turnout.ops.precision import routing_metrics
    from turnout.routers.content import SelectorContext
    from turnout.routers.content.bandit import BanditSelector, play

    task = RetrievalConfig(
        length=config.length, label="key" if config.label == "key" else "value", min_distance=200 * config.length // 512
    ).build(config.seed)
    source = torch.Generator().manual_seed(config.seed)
    table = torch.nn.functional.normalize(torch.randn(task.vocab, config.width, generator=source), dim=-1)
    train, test = task.train_batch(config.pulls), next(iter(task.eval_batches(1, 2000)))
    context = SelectorContext(width=config.width, length=config.length, vocab=task.vocab)
    runs = []
    for alpha in config.alphas:
        bandit = BanditSelector(context, kind=config.kind, alpha=alpha)
        online = play(bandit, table[train.tokens], train.at, train.evidence, within=config.within, generator=source)  # type: ignore[attr-defined]
        score = bandit(table[test.tokens], test.tokens, test.at)
        if config.within:
            place = torch.arange(config.length) // config.within
            score = score.masked_fill(place != (test.evidence // config.within)[..., None], -torch.inf)  # type: ignore[attr-defined]
        found = routing_metrics(score, test.evidence, k=1)  # type: ignore[attr-defined]
        runs.append({"lr": alpha, "online": online, **{name: round(float(v), 5) for name, v in found.items()}})
        runs[-1]["precision"] = runs[-1]["p1"]
    units = config.within or config.length - 1
    return {"seed": config.seed, "runs": runs, "units": units + 1, "unit": 1, "n_eval": 2000, "device": "cpu"}


def run_hotpot(configs: Sequence[HotpotRunConfig], device: str) -> list[dict[str, Any]]:
    """One record a seed with any-hit, all-hit and recall of every ranker."""
    from turnout.probe import hotpot as rankers
    from turnout.probe import hotpot_learned as learned
    from turnout.tasks.hotpotqa import hotpot_splits, load_hotpotqa

    config = configs[0]
    files = hotpot_splits(config.folder)
    train, test = (load_hotpotqa(files[name], unit=config.unit) for name in ("train", "test"))
    taught = train.items[: config.most_train]
    table = {
        **rankers.simple_rankers(),
        "bm25": rankers.bm25_ranker(),
        "bloom, words": rankers.bloom_ranker(1),
        "bloom, bigrams": rankers.bloom_ranker(2),
    }
    vectors = learned.TextVectors(taught)
    table["dense vectors (LSA), cosine"] = learned.cosine_ranker(vectors)
    tables, gold = [vectors.table(q) for q in taught], [q.gold for q in taught]
    records = []
    for entry in configs:
        scored = {
            name: rankers.evaluate(test.items, rank, picks=entry.picks, seed=entry.seed) for name, rank in table.items()
        }
        for spec in entry.selectors:
            selector = learned.train_selector(spec, tables, gold, seed=entry.seed)
            rank = learned.selector_ranker(selector, vectors)
            scored[f"learned {spec}"] = rankers.evaluate(test.items, rank, picks=entry.picks, seed=entry.seed)
        records.append({
            "seed": entry.seed, "rankers": scored, "chance": rankers.chance(test.items, entry.picks),
            "n_eval": len(test.items), "n_train": len(taught), "lost_facts": test.lost_facts, "device": "cpu",
            "empty_paragraphs": test.empty_paragraphs,
            "skipped": {"train": train.skipped, "test": test.skipped},
            "gold_units": sum(len(q.gold) for q in test.items) / len(test.items),
        })  # fmt: skip
    return records


@dataclass(frozen=True, kw_only=True, slots=True)
class NullRunConfig:
    """Energy ranks of untrained score forms.

    Args:
        seed: of the draws.
        width: E; draws: random weight pairs.
        heads: head counts.
    """

    seed: int = 0
    width: int = 128
    draws: int = 20
    heads: tuple[int, ...] = (1, 2, 4, 8)


def run_nulls(configs: Sequence[NullRunConfig], device: str) -> list[dict[str, Any]]:
    """Mean energy ranks by reading ("form" or "weights" averaged over heads) and number of heads."""
    from turnout.ops.spectrum import untrained_energy_ranks

    records = []
    for config in configs:
        ranks = {
            reading: {
                str(heads): untrained_energy_ranks(
                    config.width, heads=heads, average=reading, draws=config.draws, seed=config.seed
                )
                for heads in config.heads
            }
            for reading in ("form", "weights")
        }
        records.append({"seed": config.seed, "k90": ranks, "width": config.width, "device": "cpu"})
    return records
