"""TH4: what patterns lose of a far association: recall, needles among noise and MQAR, learnt short, then at 4K and 16K.

Layers alternate between a convolution over four tokens, which binds a value to the key before it, and attention, so
that dense attention learns every task within the steps it is given. There are no positions but those that a pattern
brings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from turnout.claims.patterns import GROUP
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

TASKS = ("needles", "MQAR", "recall")
NEAR = 256
# What is learnt below is a way to get here.
LEAST_LENGTH = 1024
PATTERNS = {
    "dense": "full",
    "window 256": "window:size=256",
    "sinks + window 256": "sinks:size=252,sinks=4",
    "dilated": "dilated:branches=(256/1+1024/4+4096/16+16384/64)",
    "strided": "strided:block=64,near=3,stride=8",
    "half of the heads window 256": "head_mixture:parts=(2 full;2 window:size=256)",
    "ALiBi": "alibi",
    "RetNet decay": "retnet",
    "fixed decay": "forget:gate=fixed,shortest=16,longest=256",
    "learned constant decay": "forget:gate=bias,shortest=16,longest=256",
    "forgetting": "forget:gate=full,shortest=16,longest=256",
}
# Nothing of these reaches less than a sequence of the first stage, where they are dense attention.
COVERING = ("window", "sinks", "dilated", "strided", "head_mixture")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """So many steps at one length, at a share of the learning rate; fewer pairs where the task has several."""

    length: int
    steps: int
    rate: float = 0.25
    pairs: int | None = None


# 8 or 32 pairs at once are not found in the steps there are; 4 are, and then 8 and 32 at any length. Steps at 64, 512,
# 4,096 and 16,384 tokens: dense attention has learnt recall after 100 at 64, MQAR after 250, and keeps both.
STEPS = {"needles": (400, 300, 150, 80), "MQAR": (320, 100, 40, 20), "recall": (160, 60, 30, 15)}
TINY_STAGES = (Stage(length=64, steps=2, pairs=4), Stage(length=512, steps=2), Stage(length=1024, steps=2))


def stages(task: str) -> tuple[Stage, ...]:
    """The variable TURNOUT_PATTERN_STEPS=tiny makes them small enough for a CPU."""
    if os.environ.get("TURNOUT_PATTERN_STEPS") == "tiny":
        return TINY_STAGES
    learn, grow_, long, longest = STEPS[task]
    return (
        Stage(length=64, steps=learn, rate=1.0, pairs=4),
        Stage(length=512, steps=grow_, rate=0.5),
        Stage(length=4096, steps=long),
        Stage(length=16384, steps=longest),
    )


def grow(configs: list[Any], device: str, task: str) -> list[dict[str, Any]]:
    """Train every seed at the first length and go on at the others; a record has the evaluation at each length."""
    return [_grow(config, device, task) for config in configs]


def _grow(config: Any, device: str, task: str) -> dict[str, Any]:
    from turnout.train.loop import Trainer

    weights, told, record = None, [], {}
    for stage in stages(task):
        trainer = Trainer(replace(_at_stage(config, stage), device=device, threads=1))
        if weights is not None:
            trainer.model.load_state_dict(weights)
        record = trainer.train()
        weights = trainer.model.state_dict()
        slices = trainer.last_eval["slices"]
        kept = ("length", "steps", "accuracy", "loss", "n_eval", "train_s")
        told.append({k: record[k] for k in kept} | {"distance": slices.get("distance", slices.get("gap"))})
    return record | {"stages": told, "pattern": config.model.pattern}


def _at_stage(config: Any, stage: Stage) -> Any:
    """The run's config at one length."""
    task, pattern = config.task, config.model.pattern
    if stage.pairs is not None:
        all_pairs = {"pairs": stage.pairs, "queries": stage.pairs, "distractors": 0}
        task = replace(task, **{key: n for key, n in all_pairs.items() if hasattr(task, key)})
        pattern = "full" if any(name in pattern for name in COVERING) else pattern
    return replace(
        config, task=task.with_length(stage.length), model=replace(config.model, pattern=pattern),
        schedule=replace(config.schedule, steps=stage.steps),
        # Short stages reach their rate too.
        optim=replace(
            config.optim, lr=config.optim.lr * stage.rate, warmup=min(config.optim.warmup, 5 * stage.steps // 8)
        ),
    )  # fmt: skip


def _arm(task: str, name: str) -> Arm:
    def config(seed: int) -> Any:
        from turnout.recipes.patterns import pattern_retrieval

        run = pattern_retrieval(task, pattern=PATTERNS[name], seed=seed)
        if os.environ.get("TURNOUT_PATTERN_STEPS") == "tiny":
            optim = replace(run.optim, precision="fp32", batch=4, max_tokens=2048, compile=False)
            return replace(run, loop=replace(run.loop, eval_sequences=4, final_sequences=8), optim=optim)
        return run

    return Arm(name=f"{task}, {name}", config=config, control=name == "dense", together=partial(grow, task=task))


def _arms() -> list[Arm]:
    return [_arm(task, name) for task in TASKS for name in PATTERNS]


def _at(records: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    return [stage for r in records for stage in r["stages"] if stage["length"] == length]


def beyond(stage: dict[str, Any], near: int = NEAR) -> float:
    """Accuracy of the questions whose answer lies `near` tokens back or more; nan where there is none."""
    far = [part for part in stage["distance"] or [] if part["value"] >= near]
    n = sum(part["n"] for part in far)
    return sum(part["accuracy"] * part["n"] for part in far) / n if n else float("nan")


def _told(records: list[dict[str, Any]], length: int) -> str:
    mean, half = mean_interval([100 * stage["accuracy"] for stage in _at(records, length)])
    far = [100 * beyond(stage) for stage in _at(records, length)]
    return f"{length:,} tokens {mean:.1f} ± {half:.1f} % ({sum(far) / len(far):.1f} % beyond {NEAR} tokens)"


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for arm, records in seen.items():
        task, _, name = arm.partition(", ")
        dense = seen.get(f"{task}, dense")
        lengths = [stage["length"] for stage in records[0]["stages"] if stage["length"] >= LEAST_LENGTH]
        if not dense or name == "dense" or not lengths:
            continue
        ours = {n: [stage["accuracy"] for stage in _at(records, n)] for n in lengths}
        theirs = {n: [stage["accuracy"] for stage in _at(dense, n)] for n in lengths}
        kept = all(sum(ours[n]) / len(ours[n]) >= min(theirs[n]) - 0.01 for n in lengths)
        learnt = min(min(theirs[n]) for n in lengths) >= 0.9
        findings.append(
            Finding(
                statement=f"{task}: {name} retrieves as well as dense attention at "
                + " and ".join(f"{n:,}" for n in lengths),
                quoted="(ours) what is not correlated cannot be used",
                measured="; ".join(_told(records, n) for n in lengths),
                n=len(records),
                interval="95 % over seeds, beside each number",
                control="dense " + "; ".join(_told(dense, n) for n in lengths) + f"; chance {_chance(records)}",
                # Where dense attention has not learnt the task, nothing can lose it.
                verdict="not measured" if not learnt else "holds" if kept else "does not hold",
                detail=f"seeds {', '.join(_seeds(records))}; steps "
                + ", ".join(f"{s['steps']} at {s['length']:,}" for s in records[0]["stages"]),
            )
        )
    return findings


def _chance(records: list[dict[str, Any]]) -> str:
    return f"{100 * records[0]['chance']:.2g} %"


def _seeds(records: list[dict[str, Any]]) -> list[str]:
    return ["/".join(f"{100 * stage['accuracy']:.1f}" for stage in r["stages"]) for r in records]


claim(
    Claim(id="TH4", source="this library", title="what patterns lose of far associations at 4K and 16K", arms=_arms,
          judge=_judge, seeds=3, group=GROUP)
)  # fmt: skip
