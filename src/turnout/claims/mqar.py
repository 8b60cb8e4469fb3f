"""ZO1: Zoology's MQAR, attention against convolution, state space, static hybrid and routed mixers.

Source: Arora et al., "Zoology" (2023), Figure 2: two-layer attention is at 1.0 in every cell, whatever its width;
gated convolutions need more width the longer the sequence. The best of a sweep of learning rates counts, as there.
"""

from __future__ import annotations

from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_over_seeds

BILL = "routed with its bill"
GOOD = 0.99


def _arms() -> list[Arm]:
    from turnout.recipes import mqar

    def arm(mixer: str, length: int, pairs: int, width: int, lr: float, name: str = "", costs: bool = False) -> Arm:
        return Arm(
            name=f"{name or mixer}, {cell(length, pairs, width)}, lr={lr:g}",
            config=lambda seed: mqar.mqar(seed, mixer, length, pairs, width, lr),
            control=mixer != "routed",
            # Minutes on a GPU each, hours on a CPU; the first cell is what a quick reproduction shows.
            when="always" if (length, width, lr) == (64, 64, 3e-3) and not costs else "full",
            costs=costs,
        )

    swept = [
        arm(mixer, length, pairs, width, lr)
        for length, pairs in mqar.CELLS
        for width in mqar.WIDTHS
        for mixer in mqar.LAYOUTS
        for lr in mqar.LRS
    ]
    # Timings need the device for themselves, so they are runs of their own.
    return swept + [arm("routed", length, pairs, 64, 3e-3, BILL, costs=True) for length, pairs in mqar.CELLS]


def cell(length: int, pairs: int, width: int) -> str:
    """A cell of the figure."""
    return f"T={length}, N={pairs}, d={width}"


def sweeps(seen: Summaries) -> dict[str, dict[str, dict[float, list[dict[str, Any]]]]]:
    """cell -> mixer -> learning rate -> records, from arm names "mixer, T=64, N=4, d=64, lr=0.003"."""
    found: dict[str, dict[str, dict[float, list[dict[str, Any]]]]] = {}
    for name, records in seen.items():
        mixer, _, rest = name.partition(", ")
        place, _, lr = rest.rpartition(", lr=")
        if place:
            found.setdefault(place, {}).setdefault(mixer, {})[float(lr)] = records
    return found


def best(runs: dict[float, list[dict[str, Any]]]) -> tuple[float, list[dict[str, Any]]]:
    """The learning rate of the most seeds, among those of as many the one of the highest mean accuracy."""
    return max(runs.items(), key=lambda item: (len(item[1]), sum(r["accuracy"] for r in item[1]) / len(item[1])))


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for place, mixers in sweeps(seen).items():
        if not {"attention", "routed"} <= mixers.keys():
            continue
        chosen = {name: best(runs) for name, runs in mixers.items() if name != BILL}
        accuracy = {
            name: mean_over_seeds([r["accuracy"] for r in rs], proportion_of=[r["n_eval"] for r in rs])
            for name, (_, rs) in chosen.items()
        }
        routed = chosen["routed"][1]
        usage = mean_over_seeds([r["usage"] for r in routed])
        share = accuracy["routed"].mean / max(1e-9, accuracy["attention"].mean)
        others = [a.mean for name, a in accuracy.items() if name in ("convolution", "state space")]
        ordered = all(a <= accuracy["attention"].mean + 0.005 for a in others)
        good = share >= GOOD and accuracy["attention"].mean >= GOOD and ordered
        findings.append(
            Finding(
                statement=f"Zoology MQAR ({place}): routed mixers reach 99 % of attention's accuracy",
                quoted="attention 100 %, convolutions below it (Zoology, Figure 2)",
                measured=f"routed {100 * accuracy['routed'].mean:.1f} % at {100 * usage.mean:.1f} % usage"
                + _bill(mixers.get(BILL, {})),
                n=min(len(rs) for name, (_, rs) in chosen.items() if name in ("attention", "routed")),
                interval="; ".join(f"{name} {100 * a.low:.1f}-{100 * a.high:.1f} %" for name, a in accuracy.items()),
                control="; ".join(
                    f"{name} {100 * a.mean:.1f} % (n = {a.n})" for name, a in accuracy.items() if name != "routed"
                ),
                verdict="holds" if good else "does not hold",
                detail="; ".join(f"{name}: {_rates(runs)}" for name, runs in mixers.items() if name != BILL),
            )
        )
    return findings


def _rates(runs: dict[float, list[dict[str, Any]]]) -> str:
    """Every learning rate with the accuracy of every seed."""
    return ", ".join(
        f"lr {lr:g} " + "/".join(f"{100 * r['accuracy']:.1f}" for r in records) for lr, records in sorted(runs.items())
    )


def _bill(runs: dict[float, list[dict[str, Any]]]) -> str:
    """What that usage costs: milliseconds of the trained routed model and of dense attention."""
    if not runs:
        return ""
    saved = best(runs)[1][0]["savings"]["rows"]
    ms = {(row["what"], row["arm"]): row["ms"] for row in saved}
    parts = [
        f"{what.replace('_', ' ')} {ms[what, 'routed']:.3g} ms (dense {ms[what, 'dense']:.3g})"
        for what in ("prefill", "train_step")
        if {(what, "routed"), (what, "dense")} <= ms.keys()
    ]
    return "; " + ", ".join(parts)


claim(
    Claim(
        id="ZO1", source="Arora et al. 2023, Zoology", title="MQAR: routed mixers against attention and convolution",
        arms=_arms, judge=_judge, seeds=3,
    )
)  # fmt: skip
