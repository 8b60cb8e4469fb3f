"""TH7: one megabyte of text read again and again: which mixer needs fewest tokens, and what regularisation changes."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from turnout.claims.patterns import DENSE, FIXED, GROUP, LEARNED, SOURCE, text_path, words
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

# A pass over the training split of one megabyte is 55 steps of 16,384 bytes.
PASS, PASSES = 55, 16
BASE = "dense"
LOCAL: dict[str, dict[str, Any]] = {
    "convolution": {"layout": "L"},
    # Uncompiled: the scan's own kernel runs there.
    "state space": {"layout": "L", "local": "ssm", "compiled": False},
    "convolution + dense": {"layout": "LALA"},
    "state space + dense": {"layout": "LALA", "local": "ssm", "compiled": False},
    # Uncompiled: the gate noise has a generator of its own.
    "routed": {"layout": "R", "local": "conv:kernel=16,project=false", "compiled": False},
}
# Of the arm that is routed: open gates at the end.
USAGE = 0.25
REGULARISED: dict[str, dict[str, Any]] = {
    "weight decay 1": {"weight_decay": 1.0},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.3": {"dropout": 0.3},
    "dropout 0.3, weight decay 1": {"dropout": 0.3, "weight_decay": 1.0},
    "1 pass": {"steps": PASS},
    "4 passes": {"steps": 4 * PASS},
}


def curves(configs: list[Any], device: str) -> list[dict[str, Any]]:
    """Train seeds one after the other; each record also has the curve of its evaluations."""
    from turnout.claims.pattern_runs import train_one

    return [train_one(config, device) for config in configs]


def _arm(name: str, **options: Any) -> Arm:
    def config(seed: int) -> Any:
        from turnout.recipes.patterns import pattern_cpu, pattern_gpu

        if os.environ.get("TURNOUT_PATTERN_STEPS") == "tiny":
            pattern = options.get("pattern", "full").replace("longest=960,ramp=64", "longest=96,ramp=8")
            small = pattern_cpu(text_path(), pattern=pattern, seed=seed, steps=8)
            model = replace(small.model, dropout=options.get("dropout", 0.0))
            return replace(small, model=model, loop=replace(small.loop, log_every=4, eval_every=4, eval_sequences=8))
        run = pattern_gpu(text_path(), seed=seed, max_mb=1.0, **{"steps": PASSES * PASS, **options})
        if options.get("layout") == "R":
            run = _routed(run)
        return replace(run, loop=replace(run.loop, log_every=11, eval_every=22))

    return Arm(name=name, config=config, control=name in (BASE, "no decay, no positions"), together=curves)


def _routed(run: Any) -> Any:
    """The convolution for every token, attention added for those that an "ema" router sends there."""
    from turnout.models.config import RoutingConfig
    from turnout.train.config import BudgetConfig

    return replace(
        run, model=replace(run.model, routing=RoutingConfig(router="ema", mix="add")),
        schedule=BudgetConfig(usage=USAGE, steps=run.schedule.steps), loop=replace(run.loop, skip_below=0.0),
    )  # fmt: skip


def arms() -> list[Arm]:
    """Every mixer, then dense attention and forgetting with each regularisation; what matters most comes first."""
    mixers: dict[str, dict[str, Any]] = {name: {"pattern": spec} for name, spec in (DENSE | FIXED | LEARNED).items()}
    mixers |= LOCAL
    first = ("dense", "forgetting", "window 64", "ALiBi", "fixed decay", "convolution + dense")
    named = {name: mixers[name] for name in dict.fromkeys((*first, *mixers))}
    regular = {
        f"{base}, {how}": mixers[base] | options for how, options in REGULARISED.items() for base in first[:2]
    }  # fmt: skip
    return [_arm(name, **options) for name, options in (named | regular).items()]


def tokens_to(record: dict[str, Any], target: float) -> float:
    """Tokens seen when the loss of an evaluation first reached `target`, interpolated; infinite where it never did."""
    config = record["config"]
    size = config["optim"]["batch"] * config["optim"]["accumulate"] * config["task"]["length"]
    before = (0.0, float("inf"))
    for step, loss in record["curve"]:
        if loss <= target:
            share = 1.0 if before[1] == float("inf") else (before[1] - target) / max(before[1] - loss, 1e-12)
            return float((before[0] + share * (step - before[0])) * size)
        before = (float(step), loss)
    return float("inf")


def best_loss(record: dict[str, Any]) -> float:
    """The lowest evaluation of a run: where early stopping would have ended it."""
    return min([loss for _, loss in record["curve"]] + [record["loss"]])


def _best_passes(records: list[dict[str, Any]]) -> str:
    """The pass of each seed's lowest evaluation."""
    steps = (min(r["curve"], key=lambda point: point[1])[0] for r in records)
    return ", ".join(f"{step / PASS:.0f}" for step in steps)


def _curve(records: list[dict[str, Any]]) -> str:
    """Mean loss at the evaluation nearest to the end of the 1st, 2nd, 4th, 8th and 16th pass."""
    told = []
    for n in (1, 2, 4, 8, 16):
        near = [min(r["curve"], key=lambda point: abs(point[0] - n * PASS))[1] for r in records]
        told.append(f"pass {n} {sum(near) / len(near):.3f}")
    return ", ".join(told)


def _plain(seen: Summaries) -> Summaries:
    return {name: records for name, records in seen.items() if not any(name.endswith(how) for how in REGULARISED)}


def judge_mixers(seen: Summaries) -> list[Finding]:
    """Tokens until the best loss of dense, and the best loss of the curve (more passes may make it worse again)."""
    if BASE not in seen:
        return []
    plain = _plain(seen)
    best = {name: [best_loss(r) for r in records] for name, records in plain.items()}
    target = max(best[BASE])
    base = {r["seed"]: tokens_to(r, target) for r in seen[BASE]}
    findings = []
    for name, records in plain.items():
        if name == BASE:
            continue
        # 0 where a seed never gets there.
        ratios = [base[r["seed"]] / tokens_to(r, target) for r in records if r["seed"] in base]
        there = sum(ratio > 0 for ratio in ratios)
        mean, half = mean_interval(ratios)
        last = words([r["loss"] for r in records])
        pace = f"{mean:.2f}x as fast" if there == len(ratios) else f"{there} of {len(ratios)} seeds get there"
        findings.append(
            Finding(
                statement=f"{name}: needs fewer tokens than dense to reach its best loss ({target:.3f} nats/byte)",
                quoted="human-like data efficiency is the frontier",
                measured=f"{pace}; best loss {words(best[name])} in pass {_best_passes(records)}",
                n=len(ratios),
                interval=f"± {half:.2f}x" if there == len(ratios) else "no pace where a seed never gets there",
                control=f"dense {words(best[BASE])} at {sum(base.values()) / len(base) / 1e6:.1f} M tokens",
                verdict="holds" if there == len(ratios) and mean - half > 1 else "does not hold",
                detail=f"loss after {PASSES} passes {last}; the curve: {_curve(records)}",
            )
        )
    return findings


def judge_regularisation(seen: Summaries) -> list[Finding]:
    """Is the best loss that one megabyte allows lower with a regularisation than without?"""
    findings = []
    for name, records in seen.items():
        base, _, how = name.partition(", ")
        if how not in REGULARISED or base not in seen:
            continue
        plain = {r["seed"]: r for r in seen[base]}
        gains = [best_loss(plain[r["seed"]]) - best_loss(r) for r in records if r["seed"] in plain]
        if not gains:
            continue
        mean, half = mean_interval(gains)
        ends, without = (", ".join(f"{r['loss']:.3f}" for r in rs) for rs in (records, seen[base]))
        findings.append(
            Finding(
                statement=f"{base} with {how} ends lower on one megabyte than {PASSES} passes without",
                quoted="human-like data efficiency is the frontier",
                measured=f"{mean:+.4f} nats/byte lower; best loss {words([best_loss(r) for r in records])}",
                n=len(gains),
                interval=f"± {half:.4f}",
                control=f"{base} {words([best_loss(r) for r in seen[base]])}",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"at the end of its passes {ends}; without {without}",
            )
        )
    return findings


claim(
    Claim(
        id="TH7",
        source=SOURCE,
        title="tokens to a loss on one megabyte of text",
        arms=arms,
        judge=lambda seen: [*judge_mixers(seen), *judge_regularisation(seen)],
        seeds=3,
        group=GROUP,
    )
)
