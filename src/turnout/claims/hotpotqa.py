"""RP18: 2 of 16 segments on real HotpotQA questions. RP15: bandits. Both belong to the routing-paradox study.

The questions are in the folder that the variable TURNOUT_HOTPOT names (default `data/hotpotqa`).
"""

from __future__ import annotations

from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.claims.routing_paradox import GROUP, SOURCE, precision
from turnout.stats import mean_over_seeds

QUOTED = {"segments": "82.7 % [12.5 stated]", "sentences": "-", "paragraphs": "-"}
BANDITS = {"linucb": "3.6 %", "thompson": "0.7 %", "oful": "3.6 %"}


def _recipes() -> Any:
    from turnout.recipes import routing_paradox_extra

    return routing_paradox_extra


def _share(records: list[dict[str, Any]], name: str, key: str) -> Any:
    return mean_over_seeds(
        [r["rankers"][name][key] for r in records], proportion_of=[r["n_eval"] for r in records[:1]] * len(records)
    )


def _judge_hotpot(seen: Summaries) -> list[Finding]:
    findings = []
    for unit, records in seen.items():
        first = records[0]
        names = list(first["rankers"])
        any_hit = {name: _share(records, name, "any_hit") for name in names}
        bm25 = any_hit["bm25"]
        # The same questions at every seed: the pooled interval of Wilson would count them several times.
        from turnout.stats import wilson

        low, high = wilson(bm25.mean, first["n_eval"])
        words = "; ".join(f"{name} {100 * any_hit[name].mean:.1f}" for name in names)
        whole = "; ".join(f"{name} {100 * _share(records, name, 'all_hit').mean:.1f}" for name in names)
        chance = first["chance"]
        verdict = "holds with changes" if low <= 0.827 <= high or bm25.mean >= 0.827 else "does not hold"
        findings.append(
            Finding(
                statement=f"HotpotQA: BM25 finds a supporting unit, 2 {unit} of the question's own context",
                quoted=QUOTED[unit],
                measured=f"any hit %: {words}",
                n=len(records),
                interval=f"BM25 {100 * low:.1f}-{100 * high:.1f} % (Wilson, {first['n_eval']} questions)",
                control=f"true chance: any {100 * chance['any_hit']:.1f} %, all {100 * chance['all_hit']:.1f} %",
                verdict=verdict if unit == "segments" else "holds",
                detail=f"all supporting units %: {whole}. {first['gold_units']:.2f} gold units a question; "
                f"left out: {first['skipped']}, {first.get('empty_paragraphs', 0)} empty paragraphs, "
                f"{first['lost_facts']} facts that point nowhere; learned selectors: {first['n_train']} training "
                "questions",
            )
        )
    return findings


def _judge_bandits(seen: Summaries) -> list[Finding]:
    findings = []
    for kind, quoted in BANDITS.items():
        mine = {name: records for name, records in seen.items() if name.startswith(kind)}
        if not mine:
            continue
        words, spans, partly = [], [], False
        for name, records in mine.items():
            found, chance = precision(records), 1 / (records[0]["units"] - 1)
            words.append(f"{name} {100 * found.mean:.1f} [{100 * chance:.1f}]")
            spans.append(f"{name} {100 * found.low:.1f}-{100 * found.high:.1f}")
            partly |= found.mean > 2 * chance
        findings.append(
            Finding(
                statement=f"bandit {kind} stays at chance",
                quoted=f"{quoted} [3.1 within a segment, else 0.2]",
                measured="P@1 % " + "; ".join(words),
                n=min(len(records) for records in mine.values()),
                interval="% " + "; ".join(spans),
                control="chance in brackets; alpha 0 is greedy",
                verdict="does not hold" if partly else "holds",
                detail="best of the exploration strengths; features x_i * x_j on random unit embeddings, 8,000 pulls",
            )
        )
    return findings


def _bandit_arms() -> list[Arm]:
    recipes = _recipes()

    def arm(kind: str, label: str, within: int) -> Arm:
        where = f"within {within}" if within else "all tokens"
        return Arm(
            name=f"{kind}, {label}, {where}",
            config=lambda seed: recipes.BanditRunConfig(seed=seed, kind=kind, label=label, within=within),
            together=recipes.run_bandits,
        )

    return [arm(kind, label, within) for kind in BANDITS for label in ("key", "value") for within in (0, 4)]


def _hotpot_arms() -> list[Arm]:
    recipes = _recipes()

    def arm(unit: str) -> Arm:
        return Arm(name=unit, config=lambda seed: recipes.hotpot(seed, unit), together=recipes.run_hotpot)

    return [arm(unit) for unit in QUOTED]


claim(
    Claim(
        id="RP15", source=SOURCE, title="bandits stay at chance", group=GROUP, seeds=3,
        arms=_bandit_arms, judge=_judge_bandits,
    )
)  # fmt: skip
claim(
    Claim(
        id="RP18", source=SOURCE, title="BM25 on HotpotQA: 82.7 %", group=GROUP, seeds=3,
        arms=_hotpot_arms, judge=_judge_hotpot,
    )
)  # fmt: skip
