"""TH5: policy gradient, evolution, chance and relaxed gradients search the same space at equal evaluations."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from turnout.claims.discovered import rival
from turnout.claims.patterns import GROUP, text_path
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.claims.store import read_json, results_dir
from turnout.stats import mean_interval

METHODS = ("grpo", "reinforce", "evolution", "random", "relaxed")
EVALUATIONS = 256
PRICE = 0.1
# Reading is timed where it is what a model spends its time on.
COST_LENGTH, COST_BATCH = 16_384, 4
SHUFFLES = 4


def _tiny() -> bool:
    return os.environ.get("TURNOUT_PATTERN_STEPS") == "tiny"


def _config(seed: int) -> Any:
    from turnout.recipes.patterns import pattern_gpu

    return _small(seed) if _tiny() else pattern_gpu(text_path(), seed=seed)


def _small(seed: int) -> Any:
    """What one CPU core trains and searches in minutes."""
    from turnout.recipes.patterns import pattern_cpu

    return pattern_cpu(text_path(), seed=seed, steps=20 if _tiny() else 400)


def _ladder(length: int) -> tuple[str, ...]:
    """Uniform windows with sinks, from a half to a sixty-fourth of the sequence."""
    return tuple(f"sinks:size={w},sinks=4" for w in (length // 2**i for i in range(1, 7)) if w > 4)


def measure(device: str) -> dict[str, Any]:
    """Milliseconds of every action and rival on 1 to all heads of a layer; nothing else should run beside it."""
    from turnout.search.costs import measure_costs
    from turnout.search.space import default_actions
    from turnout.train.loop import pick_device
    from turnout.train.manifest import device_name

    where = pick_device(device)
    config = _config(0) if where.type == "cuda" else _small(0)
    length = COST_LENGTH if where.type == "cuda" else 16 * config.task.length
    n_batch = COST_BATCH if where.type == "cuda" else 1
    specs = tuple(dict.fromkeys((*default_actions(config.task.length), *_ladder(config.task.length))))
    tokens = next(iter(config.task.with_length(length).build(0).eval_batches(1, n_batch))).tokens.to(where)
    ms = measure_costs(config.model, specs, tokens, seconds=10.0 if where.type == "cuda" else 1.0)
    return {
        "ms": dict(zip(specs, ms, strict=True)), "cost_length": length, "cost_batch": n_batch,
        "device_name": device_name(where), "rows": [],
    }  # fmt: skip


def search_all(configs: list[Any], device: str) -> list[dict[str, Any]]:
    """Train a dense model, search it by every method, and score the winners on sequences that no search saw."""
    return [_search(config, device) for config in configs]


def _search(config: Any, device: str) -> dict[str, Any]:
    from turnout.search.run import search
    from turnout.search.scorer import Scorer
    from turnout.search.space import default_actions, space_of
    from turnout.train.loop import Trainer, pick_device

    where = pick_device(device)
    trainer = Trainer(replace(config, device=where.type, threads=1))
    record = trainer.train()
    actions, ladder = default_actions(config.task.length), _ladder(config.task.length)
    known = read_json(results_dir() / "runs" / "TH5" / f"bench-{where.type}.json") or {}
    if not {*actions, *ladder} <= known.get("ms", {}).keys():
        known = measure(device)

    def scorer(specs: tuple[str, ...], offset: int) -> Scorer:
        model = type(trainer.model)(config.model, vocab=trainer.task.vocab)
        model.load_state_dict(trainer.model.state_dict())
        # All costs are shares of dense reading.
        costs = [known["ms"][spec] for spec in specs]
        space = space_of(config.model, specs)
        return Scorer(model.to(where), trainer.task, space, price=PRICE, costs=costs, offset=offset, batches=1 + offset)

    seen, fresh, evaluations = scorer(actions, 0), scorer(actions, 1), 32 if _tiny() else EVALUATIONS
    rows = []
    for method in METHODS:
        found = search(seen, method=method, evaluations=evaluations, seed=config.seed)
        held = fresh(found.choice)
        rows.append(
            {"method": method, "reward": found.score.reward, "loss": found.score.loss, "cost": found.score.cost,
             "held_loss": held.loss, "held_reward": held.reward, "pattern": found.pattern,
             "shuffled": _shuffled(fresh, found.choice, config.seed), "curve": [round(r, 5) for r in found.curve]}
        )  # fmt: skip
    uniform = {}
    for scored in (fresh, scorer(("full", *ladder), 1)):
        for i, action in enumerate(scored.space.actions):
            one = scored(scored.space.uniform(i))
            uniform[action] = {"held_loss": one.loss, "cost": one.cost, "held_reward": one.reward}
    return record | {
        "rows": rows, "uniform": uniform, "base": seen.base, "held_base": fresh.base, "evaluations": evaluations,
        "price": PRICE, "cost_length": known["cost_length"], "cost_batch": known["cost_batch"],
    }  # fmt: skip


def _shuffled(scorer: Callable[..., Any], choice: tuple[int, ...], seed: int) -> list[float]:
    """Held-out losses of the same actions on heads drawn at random: what knowing which head is worth."""
    draw, losses = random.Random(seed), []
    for _ in range(SHUFFLES):
        other = list(choice)
        draw.shuffle(other)
        losses.append(scorer(tuple(other)).loss)
    return losses


def _row(record: dict[str, Any], method: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in record["rows"] if row["method"] == method)
    return row


def _judge_methods(records: list[dict[str, Any]], what: str) -> list[Finding]:
    """Every method against chance on the same models."""
    findings = []
    for method in (m for m in METHODS if m != "random"):
        reward = [_row(r, method)["held_reward"] for r in records]
        chance = [_row(r, "random")["held_reward"] for r in records]
        mean, half = mean_interval([a - b for a, b in zip(reward, chance, strict=True)])
        found = [(r["seed"], _row(r, method)) for r in records]
        findings.append(
            Finding(
                statement=f"{what}: {method} finds a better pattern than chance at equal evaluations",
                quoted="RL can discover attention heuristics" if method in ("grpo", "reinforce") else "(ours)",
                measured=f"reward {sum(reward) / len(reward):+.4f} on sequences that no search saw",
                n=len(reward),
                interval=f"{mean:+.4f} ± {half:.4f} against chance, same models, {records[0]['evaluations']} passes",
                control=f"random {sum(chance) / len(chance):+.4f}",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail="; ".join(
                    f"seed {seed}: loss {row['held_loss']:.4f}, cost {row['cost']:.3f}, {row['pattern']}"
                    for seed, row in found
                ),
            )
        )
    return findings


def _own_actions(record: dict[str, Any]) -> dict[str, Any]:
    """The record with only those uniform patterns that the search could have chosen."""
    from turnout.search.space import default_actions

    actions = default_actions(record["config"]["task"]["length"])
    return {"uniform": {spec: one for spec, one in record["uniform"].items() if spec in actions}}


def _judge_uniform(records: list[dict[str, Any]], what: str, *, own: bool) -> list[Finding]:
    """What each method found against the best uniform pattern that costs no more, and against itself on other heads.

    Args:
        own: only uniform patterns of the search's own actions count; else also windows that it was not offered.
    """
    findings = []
    for method in METHODS:
        rows = [_row(r, method) for r in records]
        pools = [_own_actions(r) if own else r for r in records]
        rivals = [rival(pool, row["cost"]) for pool, row in zip(pools, rows, strict=True)]
        gains = [other["held_loss"] - row["held_loss"] for (_, other), row in zip(rivals, rows, strict=True)]
        moved = [sum(row["shuffled"]) / len(row["shuffled"]) - row["held_loss"] for row in rows]
        (mean, half), (other, wide) = mean_interval(gains), mean_interval(moved)
        told = dict.fromkeys(f"{spec} {one['held_loss']:.4f} at {one['cost']:.3f}" for spec, one in rivals)
        base = sum(r["held_base"] for r in records) / len(records)
        findings.append(
            Finding(
                statement=f"{what}: the pattern that {method} finds beats the best uniform one that costs no more, of "
                + ("its own actions" if own else "windows of any size"),
                quoted="(ours) discovered beats uniform at equal measured cost",
                measured=f"{mean:+.4f} nats lower: "
                + ", ".join(f"{row['held_loss']:.4f} at {row['cost']:.3f}" for row in rows),
                n=len(gains),
                interval=f"± {half:.4f}",
                control="; ".join(told) + f"; dense {base:.4f} at 1",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"the same actions on other heads: {other:+.4f} ± {wide:.4f} nats higher; cost: share of dense "
                f"reading in ms, {records[0]['cost_batch']} sequences of {records[0]['cost_length']:,} tokens",
            )
        )
    return findings


def _judge(seen: Summaries) -> list[Finding]:
    found = []
    for arm in (name for name in ("search", "search, small model") if name in seen):
        model = seen[arm][0]["config"]["model"]
        what = f"{model['layers']} layers of {model['heads']} heads"
        found += _judge_methods(seen[arm], what)
        found += [finding for own in (False, True) for finding in _judge_uniform(seen[arm], what, own=own)]
    return found


claim(
    Claim(
        id="TH5",
        source="2109.00527 read as attention; 2510.08525",
        title="who finds patterns (RL, evolution, chance, gradients), and whether they beat uniform ones",
        arms=lambda: [
            Arm(name="search", config=_config, together=search_all),
            Arm(name="search, small model", config=_small, together=search_all),
        ],
        bench=measure,
        judge=_judge,
        seeds=5,
        group=GROUP,
    )
)
