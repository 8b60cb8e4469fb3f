"""Recipes of "seen before" as a query router: an index, what is learned and what knows nothing, on the same tasks.

An index opens where it opens, so its usage is what the others are given (`USAGE`): learned routers as a budget, random
and periodic ones as a rate. On each task all arms share model, optimiser and batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from turnout.models.config import RoutingConfig, hybrid_layout
from turnout.recipes import mqar, routed_attention, text
from turnout.recipes.registry import recipe
from turnout.tasks import MQARConfig, RecallConfig
from turnout.train.config import BudgetConfig, CurriculumConfig, JointConfig, LoopConfig, OptimConfig, RunConfig

RECALL, HARD, SHORT, TEXT, SMALL = "recall", "hard recall", "MQAR 64", "text", "small"
# Attend if it occurred before: this token; it and the one before; this token, or four bytes, once or twice.
INDICES = {"tokens": "bloom", "bigrams": "bloom:ngram=2", "rare": "bloom:most=2", "four bytes": "bloom:ngram=4,most=2"}
# Share of the positions at which an index opens, counted over 256 sequences (1,024 held-out ones of text). What is not
# named opens hardly anywhere (bigrams), or where the one of tokens does (rare ones of MQAR).
USAGE = {
    RECALL: {"tokens": 0.6485, "rare": 0.4662},
    HARD: {"tokens": 0.8443, "rare": 0.2635},
    SHORT: {"tokens": 0.0657},
    SMALL: {"tokens": 0.0766},
    TEXT: {"tokens": 0.919, "bigrams": 0.604, "rare": 0.1233},
}
# In MQAR a token by itself says whether it is a key, and half of the filler looks like one: what a router needs that
# does not know what came before, half of the tokens in one of two layers.
QUARTER = 0.27
LEARNED = {"linear": "linear:bias={}", "ema": "ema:bias={}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Most steps of unlearned and of learned routers, and which part of them may be spent until the task is solved.

    A task that is solved earlier leaves the rest of the warm-up out. Then gates close and the learning rate falls;
    routers that do not learn have only the latter to do.
    """

    fixed: int
    learned: int
    warmup: float
    ramp: float = 0.25
    solve_at: float | None = 0.99
    bias: float = 0.0


PACES = {
    RECALL: Pace(fixed=2400, learned=3600, warmup=0.45),
    HARD: Pace(fixed=3000, learned=7000, warmup=0.6),
    # Gates that are open to begin with find MQAR sooner than those that toss a coin.
    SHORT: Pace(fixed=1600, learned=5000, warmup=0.5, bias=3.0),
    SMALL: Pace(fixed=600, learned=1000, warmup=0.6, bias=3.0),
    TEXT: Pace(fixed=1500, learned=1500, warmup=0.1, ramp=0.5, solve_at=None),
}


@recipe("seen_before", "who attends: an index of what occurred before, or a router at the index's usage")
def seen_before(
    seed: int = 0, task: str = SHORT, router: str = "bloom", usage: float = 0.0, layout: str = "R"
) -> RunConfig:
    """Hard recall is eight pairs with eight queries; MQAR has 8,192 ids (small: 2,048) and random filler.

    Args:
        task: one of `PACES`.
        router: spec of the query router; one of `LEARNED` stands for that router with the task's first bias.
        usage: what a learned router is to come down to; 0 = the router does not learn.
        layout: without routed layers, or with.
    """
    pace, base = PACES[task], _BASES[task](seed)
    router = LEARNED.get(router, router).format(pace.bias)
    schedule = BudgetConfig(
        usage=usage or 1.0, steps=pace.learned if usage else pace.fixed, solve_at=pace.solve_at, ramp=pace.ramp,
        # A router that does not learn has nothing to close: a quarter of its steps is for the falling learning rate.
        warmup=pace.warmup if usage or pace.solve_at is None else 0.75,
    )  # fmt: skip
    return replace(
        base,
        name=f"seen_before_{task.replace(' ', '_')}".lower(),
        model=replace(base.model, layout=layout, routing=replace(base.model.routing, router=router)),
        schedule=schedule,
        # A closed gate of a learned router learns to open only where attention is computed for it too.
        loop=replace(base.loop, savings=False, checkpoint_every=0, skip_below=0.0 if usage else base.loop.skip_below),
    )


def control(name: str, usage: float, seed: int) -> str:
    """Spec of a router that knows nothing, at a usage; periodic gates begin elsewhere for every seed."""
    period = 1 / usage
    return (
        f"random:p={usage}" if name == "random" else f"periodic:period={period:.6g},offset={seed % 3 / 3 * period:.6g}"
    )


def static_hybrid(task: str, usage: float) -> str:
    """The layout whose attention layers come nearest to the usage."""
    layers = _BASES[task](0).model.layers
    # One layer of two attends behind the one that moves a value next to its key.
    return "LA" if layers == 2 else hybrid_layout(layers, usage)


def _recall(seed: int) -> RunConfig:
    return RunConfig(
        seed=seed,
        task=RecallConfig(length=128),
        model=replace(routed_attention.PUBLISHED_MODEL, routing=RoutingConfig(noise="gumbel", max_logit=4.0)),
        optim=OptimConfig(batch=32, decay="cosine"),
        loop=LoopConfig(eval_sequences=256),
    )


def _mqar(seed: int) -> RunConfig:
    return mqar.mqar(seed, mqar.UNLEARNED, random_filler=True)


def from_large_embeddings(seed: int, mixer: str, router: str = "linear:bias=0") -> RunConfig:
    """MQAR at 256 tokens with 16 pairs, embedding and head two matrices of N(0, 1): 4,000 steps of a harder start.

    Args:
        mixer: of `recipes.mqar`: "attention", "routed" or, for a router that does not learn, "unlearned".
    """
    base = mqar.mqar(seed, mixer, 256, 16, router=router, random_filler=True)
    schedule: CurriculumConfig | JointConfig = JointConfig(steps=4000)
    if mixer == "routed":
        schedule = CurriculumConfig(explore_steps=4000, ramp_steps=1000, hold_steps=400, cost=0.004, guard=0.99)
    return replace(
        base,
        model=replace(base.model, form="gpt", tie=False, heads=2),
        schedule=schedule,
        optim=replace(base.optim, batch=128, lr=2e-3, weight_decay=0.01, precision="fp32"),
        loop=replace(base.loop, eval_every=200, savings=False),
    )


def _small(seed: int) -> RunConfig:
    """Half a minute a run on one CPU core."""
    base = _mqar(seed)
    return replace(
        base,
        task=MQARConfig(length=64, pairs=4, vocab=2048),
        optim=replace(base.optim, batch=32, lr=5e-3, precision="fp32"),
        loop=replace(base.loop, eval_every=50, eval_sequences=256),
    )


def _text(seed: int) -> RunConfig:
    return text.text_gpu(os.environ.get("TURNOUT_TEXT", "data/mixture"), seed=seed)


_BASES: dict[str, Callable[[int], RunConfig]] = {
    RECALL: _recall,
    HARD: lambda seed: routed_attention.hard_recall(seed=seed),
    SHORT: _mqar,
    SMALL: _small,
    TEXT: _text,
}
