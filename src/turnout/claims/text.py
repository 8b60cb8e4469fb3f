"""TX1 to TX3: routing on real text, learned against every control at equal usage; a small budget that must land.

The text is the folder that the variable TURNOUT_TEXT names (default `data/mixture`): any folder of text files.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

SIXTH, QUARTER = 0.1667, 0.25


def _arms(size: str, usage: float, hybrid: str) -> list[Arm]:
    def arm(name: str, control: bool = True, **options: Any) -> Arm:
        def config(seed: int) -> Any:
            from turnout.recipes import text

            build = text.text_gpu if size == "gpu" else text.text_cpu
            return build(os.environ.get("TURNOUT_TEXT", "data/mixture"), seed=seed, **options)

        return Arm(name=name, config=config, control=control, costs=name.startswith("learned"))

    return [
        arm("learned", control=False, router="linear"),
        arm("learned, ema router", control=False, router="ema"),
        arm("dense", layout="A"),
        arm("dense + local", router="always"),
        arm("local only", layout="L"),
        arm("static hybrid", layout=hybrid),
        arm("random", router=f"random:p={usage}"),
        arm("frozen", router=f"frozen:usage={usage}"),
    ]


def _words(records: list[dict[str, Any]]) -> str:
    mean, half = mean_interval([r["loss"] for r in records])
    usage = [r["usage"] for r in records if r["usage"] is not None]
    return f"{mean:.3f} ± {half:.3f} nats/byte" + (f" at {100 * sum(usage) / len(usage):.1f} %" if usage else "")


def _costs(records: list[dict[str, Any]]) -> str:
    """Microseconds a token of the trained model with its own decisions, and how many times dense attention's speed."""
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for record in records:
        rows = {(row["what"], row["arm"]): row for row in record.get("savings", {}).get("rows", [])}
        for what in ("train_step", "prefill", "decode"):
            if (what, "routed") in rows:
                mine = rows[what, "routed"]
                tokens = mine["batch"] * (1 if what == "decode" else mine["length"])
                ratios = (rows[what, other]["ms"] / mine["ms"] for other in ("dense", "static_hybrid"))
                seen.setdefault(what, []).append((1e3 * mine["ms"] / tokens, *ratios))
    parts = []
    for what, values in seen.items():
        times, dense, static = (mean_interval(list(column)) for column in zip(*values, strict=True))
        parts.append(
            f"{what.replace('_', ' ')} {times[0]:.3f} ± {times[1]:.3f} us/token, {dense[0]:.2f}x dense, "
            f"{static[0]:.2f}x static hybrid (n={len(values)})"
        )
    return "; ".join(parts)


def _judge(seen: Summaries, what: str, asked: float) -> list[Finding]:
    routers = {"learned": "linear router", "learned, ema router": "ema router, which sees the past"}
    return [_learned(seen, name, f"{what}, {router}", asked) for name, router in routers.items() if name in seen]


def _learned(seen: Summaries, name: str, what: str, asked: float) -> Finding:
    learned = seen[name]
    _, half = mean_interval([r["loss"] for r in learned])
    equal = {other: seen[other] for other in ("static hybrid", "random", "frozen") if other in seen}
    gaps = {other: _gap(records, learned) for other, records in equal.items()}
    verdict = "too few seeds"
    if any(gap <= 0 for gap, _ in gaps.values()):
        verdict = "does not hold"
    elif all(gap > width for gap, width in gaps.values()):
        verdict = "holds"
    ahead = "; ".join(f"{gap:+.3f} ± {width:.3f} against {other}" for other, (gap, width) in gaps.items())
    usage = [r["usage"] for r in learned]
    controls = {other: records for other, records in seen.items() if not other.startswith("learned")}
    return Finding(
        statement=f"{what}: learned routing beats every control at its usage",
        quoted="learned routing hurts language models (23.83 -> 31.63 perplexity; HRS)",
        measured=_words(learned),
        n=len(learned),
        interval=f"± {half:.3f} nats/byte; usage {min(usage):.4f}-{max(usage):.4f}, asked {asked:.4f}",
        control="; ".join(f"{other} {_words(records)}" for other, records in controls.items()),
        verdict=verdict,
        detail=f"ahead by {ahead}. {_costs(learned)}",
    )


def _gap(control: list[dict[str, Any]], learned: list[dict[str, Any]]) -> tuple[float, float]:
    """How much lower the learned loss is on the same seeds (same data order), and the half width of its interval."""
    by_seed = {r["seed"]: r["loss"] for r in control}
    return mean_interval([by_seed[r["seed"]] - r["loss"] for r in learned if r["seed"] in by_seed])


claim(
    Claim(
        id="TX1",
        source="this library",
        title="real text, six layers: routing against its controls",
        arms=lambda: _arms("gpu", SIXTH, "LLALLL"),
        judge=lambda seen: _judge(seen, "real text, 6 layers, one sixth of the usage", SIXTH),
        seeds=3,
    )
)
claim(
    Claim(
        id="TX2",
        source="this library",
        title="real text, tiny model on a CPU: routing against its controls",
        arms=lambda: _arms("cpu", QUARTER, "LALL"),
        judge=lambda seen: _judge(seen, "real text, tiny model on a CPU, a quarter of the usage", QUARTER),
        seeds=3,
    )
)


ASKED = 0.02
BUDGETS = {
    "asked 2 %": ("tiny model on a CPU, linear router, 1,500 steps", "cpu", "linear"),
    "asked 2 %, ema router": ("tiny model on a CPU, ema router, 1,500 steps", "cpu", "ema"),
    "asked 2 %, six layers": ("six layers, linear router, 1,500 steps", "gpu", "linear"),
    "asked 2 %, six layers, ema router": ("six layers, ema router, 1,500 steps", "gpu", "ema"),
}


def _small_budget(seed: int, size: str = "cpu", router: str = "linear") -> Any:
    from turnout.recipes import text
    from turnout.train.config import BudgetConfig

    build = text.text_gpu if size == "gpu" else text.text_cpu
    config = build(os.environ.get("TURNOUT_TEXT", "data/mixture"), router=router, seed=seed)
    return replace(config, schedule=BudgetConfig(usage=ASKED, steps=1500))


def _budget_arms() -> list[Arm]:
    def arm(name: str, size: str, router: str) -> Arm:
        when = "full" if size == "gpu" else "always"
        return Arm(name=name, config=lambda seed: _small_budget(seed, size, router), when=when)

    return [arm(name, size, router) for name, (_, size, router) in BUDGETS.items()]


def _judge_budget(seen: Summaries) -> list[Finding]:
    findings = []
    for name, (what, _, _) in BUDGETS.items():
        records = seen.get(name, [])
        if not records:
            continue
        usage = [r["usage"] for r in records]
        mean, half = mean_interval(usage)
        lands = all(abs(u - ASKED) <= 0.1 * ASKED for u in usage)
        findings.append(
            Finding(
                statement=f"a budget of 2 % lands within 10 % of it ({what})",
                quoted="(ours) 1.8 to 2.2 %",
                measured="; ".join(f"{100 * u:.2f} %" for u in usage),
                n=len(records),
                interval=f"{100 * mean:.2f} ± {100 * half:.2f} %",
                control="plain dual ascent on the usage: 5.1 % (one seed, LOG)",
                verdict="holds" if lands else "does not hold",
                detail=f"loss {_words(records)}",
            )
        )
    return findings


claim(
    Claim(
        id="TX3",
        source="this library",
        title="a budget of 2 % lands within 10 % of it",
        arms=_budget_arms,
        judge=_judge_budget,
        seeds=5,
    )
)
