"""ZO1: Zoology's MQAR, attention against convolution, static hybrid and routed mixers.

Source: Arora et al., "Zoology" (2023), Figure 2: two-layer attention is at 1.0 in every cell.
"""

from __future__ import annotations

from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_over_seeds


def _arms() -> list[Arm]:
    from turnout.recipes import mqar

    def arm(mixer: str, length: int, pairs: int) -> Arm:
        return Arm(
            name=f"{mixer}, T={length}, N={pairs}",
            config=lambda seed: mqar.mqar(seed, mixer, length, pairs),
            control=mixer != "routed",
        )

    return [arm(mixer, length, pairs) for length, pairs in mqar.CELLS for mixer in mqar.LAYOUTS]


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for cell in dict.fromkeys(name.partition(", ")[2] for name in seen):
        mine = {name.partition(", ")[0]: records for name, records in seen.items() if name.endswith(cell)}
        if not {"attention", "routed"} <= mine.keys():
            continue
        accuracy = {
            name: mean_over_seeds([r["accuracy"] for r in records], proportion_of=[r["n_eval"] for r in records])
            for name, records in mine.items()
        }
        usage = mean_over_seeds([r["usage"] for r in mine["routed"]])
        share = accuracy["routed"].mean / max(1e-9, accuracy["attention"].mean)
        good = share >= 0.99 and accuracy["attention"].mean >= 0.99
        findings.append(
            Finding(
                statement=f"Zoology MQAR ({cell}): routed mixers reach 99 % of attention's accuracy",
                quoted="attention 100 %, convolutions below it (Zoology, Figure 2)",
                measured=f"routed {100 * accuracy['routed'].mean:.1f} % at {100 * usage.mean:.1f} % usage",
                n=min(len(records) for records in mine.values()),
                interval="; ".join(f"{name} {100 * a.low:.1f}-{100 * a.high:.1f} %" for name, a in accuracy.items()),
                control="; ".join(f"{name} {100 * a.mean:.1f} %" for name, a in accuracy.items() if name != "routed"),
                verdict="holds" if good else "does not hold",
                detail=_seeds(mine),
            )
        )
    return findings


def _seeds(mine: dict[str, list[dict[str, Any]]]) -> str:
    return "; ".join(f"{name}: " + ", ".join(f"{100 * r['accuracy']:.1f}" for r in rs) for name, rs in mine.items())


claim(
    Claim(
        id="ZO1", source="Arora et al. 2023, Zoology", title="MQAR: routed mixers against attention and convolution",
        arms=_arms, judge=_judge, seeds=3,
    )
)  # fmt: skip
