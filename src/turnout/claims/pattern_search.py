"""TH5: policy gradient, evolution, chance and relaxed gradients search the same space at equal evaluations."""

from __future__ import annotations

import os
from typing import Any

from turnout.claims.registry import Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

METHODS = ("grpo", "reinforce", "evolution", "random", "relaxed")
SEEDS = 3
EVALUATIONS = 256
PRICE = 0.1


def record(device: str) -> dict[str, Any]:
    """Train a dense model, search with every method and seed, and score the winners on sequences none has seen."""
    from dataclasses import replace

    from turnout.recipes.patterns import pattern_cpu, pattern_gpu
    from turnout.search.run import search
    from turnout.search.scorer import Scorer
    from turnout.search.space import Space, default_actions, space_of
    from turnout.train.loop import Trainer, pick_device
    from turnout.train.manifest import device_name

    where, path = pick_device(device), os.environ.get("TURNOUT_TEXT", "data/mixture")
    tiny = os.environ.get("TURNOUT_PATTERN_STEPS") == "tiny"
    config = pattern_cpu(path, steps=20) if tiny else (pattern_gpu if where.type == "cuda" else pattern_cpu)(path)
    evaluations = 32 if tiny else EVALUATIONS
    trainer = Trainer(replace(config, device=where.type))
    trainer.train()
    length, cost_length = config.task.length, 4096 if where.type == "cuda" else 4 * config.task.length
    actions = default_actions(length)

    def scorer(space: Space, offset: int) -> Scorer:
        model = type(trainer.model)(config.model, vocab=trainer.task.vocab)
        model.load_state_dict(trainer.model.state_dict())
        # Windows are timed at four times the length, where they save something; all methods get the same times.
        return Scorer(model.to(where), trainer.task, space, price=PRICE, offset=offset, cost_length=cost_length)

    seen, fresh = scorer(space_of(config.model, actions), 0), scorer(space_of(config.model, actions), 1)
    fresh.ms = seen.ms
    found = []
    for method in METHODS:
        for seed in range(SEEDS):
            result = search(seen, method=method, evaluations=evaluations, seed=seed)
            held = fresh(result.choice)
            found.append(
                {"method": method, "seed": seed, "reward": result.score.reward, "loss": result.score.loss,
                 "cost": result.score.cost, "held_loss": held.loss, "held_reward": held.reward,
                 "pattern": result.pattern, "curve": [round(r, 5) for r in result.curve]}
            )  # fmt: skip
    ladder = tuple(f"sinks:size={w},sinks=4" for w in (length // 2**i for i in range(1, 7)) if w > 4)
    steps = scorer(space_of(config.model, ("full", *ladder)), 1)
    uniform = {}
    for scored in (fresh, steps):
        for i, action in enumerate(scored.space.actions):
            one = scored(scored.space.uniform(i))
            # Cost in the same milliseconds: that of dense reading belongs to the first table.
            cost = scored.ms[i] / seen.ms[0]
            uniform[action] = {"held_loss": one.loss, "cost": cost, "held_reward": scored.reward(one.loss, cost)}
    return {
        "rows": found, "uniform": uniform, "ms": dict(zip(actions, seen.ms, strict=True)), "base": seen.base,
        "held_base": fresh.base, "evaluations": evaluations, "price": PRICE, "length": length,
        "cost_length": cost_length, "device_name": device_name(where),
    }  # fmt: skip


def _judge_methods(seen: Summaries) -> list[Finding]:
    findings = []
    for bench in seen.get("bench", []):
        reward = {m: [r["held_reward"] for r in bench["rows"] if r["method"] == m] for m in METHODS}
        chance = mean_interval(reward["random"])
        for method in (m for m in METHODS if m != "random"):
            mean, half = mean_interval(reward[method])
            findings.append(
                Finding(
                    statement=f"{method} finds a better pattern than chance in {bench['evaluations']} evaluations",
                    quoted="RL can discover attention heuristics" if method in ("grpo", "reinforce") else "(ours)",
                    measured=f"reward {mean:+.4f} on sequences that no search saw",
                    n=len(reward[method]),
                    interval=f"± {half:.4f}",
                    control=f"random {chance[0]:+.4f} ± {chance[1]:.4f}",
                    verdict="holds" if mean - half > chance[0] + chance[1] else "does not hold",
                    detail="; ".join(
                        f"{r['method']} {r['seed']}: loss {r['held_loss']:.4f}, cost {r['cost']:.3f}, {r['pattern']}"
                        for r in bench["rows"]
                        if r["method"] == method
                    ),
                )
            )
    return findings


def _judge_uniform(seen: Summaries) -> list[Finding]:
    """The best found pattern against the best uniform one that costs no more."""
    findings = []
    for bench in seen.get("bench", []):
        for method in METHODS:
            rows = [r for r in bench["rows"] if r["method"] == method]
            gains, told = [], []
            for row in rows:
                rivals = {a: u for a, u in bench["uniform"].items() if u["cost"] <= row["cost"] * 1.001}
                if not rivals:
                    continue
                name, best = min(rivals.items(), key=lambda pair: pair[1]["held_loss"])
                gains.append(best["held_loss"] - row["held_loss"])
                told.append(f"{name} {best['held_loss']:.4f} at {best['cost']:.3f}")
            if not gains:
                continue
            mean, half = mean_interval(gains)
            losses = ", ".join(f"{r['held_loss']:.4f} at {r['cost']:.3f}" for r in rows)
            findings.append(
                Finding(
                    statement=f"the pattern that {method} finds beats the best uniform one that costs no more",
                    quoted="(ours) discovered beats uniform at equal measured cost",
                    measured=f"{mean:+.4f} nats lower: {losses}",
                    n=len(gains),
                    interval=f"± {half:.4f}",
                    control="; ".join(dict.fromkeys(told)) + f"; dense {bench['held_base']:.4f} at 1",
                    verdict="holds" if mean - half > 0 else "does not hold",
                )
            )
    return findings


claim(
    Claim(
        id="TH5",
        source="2109.00527 read as attention; 2510.08525",
        title="who finds patterns (RL, evolution, chance, gradients), and whether they beat uniform ones",
        bench=record,
        judge=lambda seen: [*_judge_methods(seen), *_judge_uniform(seen)],
        group="heuristics",
    )
)
