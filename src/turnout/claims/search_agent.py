"""TH9: an agent that refines BM25 queries on HotpotQA, against one query, chance and feedback without learning.

The questions are in the folder that the variable TURNOUT_HOTPOT names (default `data/hotpotqa`).
"""

from __future__ import annotations

import os
from typing import Any

from turnout.claims.registry import Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

SEEDS = 3
_FILES = {"train": "train300", "test": "test500"}
NAMES = {
    "feedback": "feedback without learning (Rocchio)",
    "imitation": "imitation of the oracle",
    "imitation + RL": "imitation, then policy gradient",
    "RL": "policy gradient from scratch",
}


def record(device: str) -> dict[str, Any]:
    """Train on 300 questions, score on 500 others; one index over the paragraphs of all. On the CPU, minutes."""
    from turnout.search import agent
    from turnout.search.retrieval import Index
    from turnout.tasks.hotpotqa import load_hotpotqa
    from turnout.train.loop import pick_device
    from turnout.train.manifest import device_name

    folder = os.environ.get("TURNOUT_HOTPOT", "data/hotpotqa")
    most = int(os.environ.get("TURNOUT_HOTPOT_MOST", "100000"))
    items = {
        name: load_hotpotqa(f"{folder}/hotpot_val_distractor_{file}.jsonl", unit="paragraphs").items
        for name, file in _FILES.items()
    }
    texts = list(dict.fromkeys(unit for part in items.values() for q in part for unit in q.units))
    number = {text: i for i, text in enumerate(texts)}
    index = Index(texts)
    questions = {
        name: [agent.Question(text=q.text, gold=tuple(number[q.units[g]] for g in q.gold)) for q in part[:most]]
        for name, part in items.items()
    }

    def scores(pick: agent.Pick, part: list[agent.Question]) -> list[tuple[float, float]]:
        return [agent.play(index, question, pick) for question in part]

    test, train = questions["test"], questions["train"]
    known = scores(agent.feedback, test)
    found: dict[str, list[list[float]]] = {
        "one query": [[before for before, _ in known]],
        "feedback": [[after for _, after in known]],
        "oracle (told the answer), 100 questions": [[after for _, after in scores(agent.oracle, test[:100])]],
    }
    examples = agent.oracle_episodes(index, train)
    curves = {}
    for seed in range(SEEDS):
        taught = agent.Policy(seed=seed)
        agent.imitate(taught, examples, passes=12)
        found.setdefault("imitation", []).append([after for _, after in scores(taught.greedy, test)])
        curves[f"imitation + RL {seed}"] = agent.reinforce(taught, index, train, seed=seed, passes=2, group=6)
        found.setdefault("imitation + RL", []).append([after for _, after in scores(taught.greedy, test)])
        fresh = agent.Policy(seed=seed)
        curves[f"RL {seed}"] = agent.reinforce(fresh, index, train, seed=seed, passes=3, group=6, rate=1e-2)
        found.setdefault("RL", []).append([after for _, after in scores(fresh.greedy, test)])
        found.setdefault("chance", []).append([after for _, after in scores(agent.chance(seed), test)])
    kept = {name: [[round(v, 4) for v in values] for values in runs] for name, runs in found.items()}
    return {
        "ndcg": kept, "curves": curves, "documents": len(texts), "n_train": len(train), "n_test": len(test),
        "device_name": device_name(pick_device("cpu")),
    }  # fmt: skip


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for bench in seen.get("bench", []):
        ndcg, n = bench["ndcg"], bench["n_test"]
        base = ndcg["one query"][0]
        mean = {name: sum(sum(run) / len(run) for run in runs) / len(runs) for name, runs in ndcg.items()}
        for name, words in NAMES.items():
            runs = ndcg[name]
            # Seeds share the questions: the interval is over questions, of the mean over seeds.
            gains = [sum(run[i] for run in runs) / len(runs) - base[i] for i in range(n)]
            gain, half = mean_interval(gains)
            findings.append(
                Finding(
                    statement=f"{words} beats one BM25 query ({bench['documents']:,} paragraphs, nDCG@5)",
                    quoted="an agent that refines queries beats BM25 (2109.00527)",
                    measured=f"{mean[name]:.4f} against {mean['one query']:.4f}",
                    n=len(runs),
                    interval=f"{gain:+.4f} ± {half:.4f} over {n} questions",
                    control="; ".join(f"{other} {value:.4f}" for other, value in mean.items() if other != name),
                    verdict="holds" if gain - half > 0 else "does not hold",
                    detail=f"{bench['n_train']} training questions; seeds "
                    + ", ".join(f"{sum(run) / len(run):.4f}" for run in runs),
                )
            )
    return findings


claim(
    Claim(
        id="TH9",
        source="2109.00527, small",
        title="an agent that refines BM25 queries",
        bench=record,
        judge=_judge,
        group="heuristics",
    )
)
