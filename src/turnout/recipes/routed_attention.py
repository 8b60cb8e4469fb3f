"""Recipes of the routed-attention study: the published runs, and this library's answer to each of them.

`published_*` follow the published code (4 layers, width 128, convolution of 64 averaged values, EMA router, Gumbel
gates, penalty on the mean hard gate). The others change what its failures ask for: penalty per gate on the soft
probability, a guard, a small router, lengths grown after the gates are closed.
"""

from __future__ import annotations

from dataclasses import replace

from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes.registry import recipe
from turnout.tasks import RecallConfig, RecallHardConfig
from turnout.train.config import CurriculumConfig, JointConfig, LoopConfig, OptimConfig, RunConfig

LONG_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PUBLISHED_MODEL = ModelConfig(
    layers=4,
    width=128,
    heads=4,
    local="conv:kernel=64,form=softmax",
    routing=RoutingConfig(router="ema", noise="gumbel"),
)


def _batch(length: int) -> int:
    return 32 if length <= 256 else 24 if length <= 512 else 16 if length <= 1024 else 8 if length <= 2048 else 4


@recipe("demo", "recall at distance 126 on two CPU cores: a curriculum closes all gates but the one that is needed")
def demo(seed: int = 0) -> RunConfig:
    """Four small layers; gates are closed at 32 tokens, where a step is cheap, then the length grows to 128."""
    return RunConfig(
        name="demo",
        seed=seed,
        task=RecallConfig(length=128),
        model=ModelConfig(
            layers=4, width=64, heads=4, local="conv:kernel=8,project=false", routing=RoutingConfig(max_logit=5.0)
        ),
        schedule=CurriculumConfig(
            cost=0.02,
            explore_steps=3000,
            ramp_steps=600,
            hold_steps=200,
            lengths=(32, 64, 128),
            grow_steps=300,
            settle_steps=200,
            guard=0.999,
        ),
        optim=OptimConfig(batch=32, lr=2e-3, decay="cosine"),
        loop=LoopConfig(eval_sequences=1024),
    )


@recipe("published_recall", "the published recipe at distance 126 (change task.length for the others)")
def published_recall(length: int = 128, cost: float = 0.5, seed: int = 0) -> RunConfig:
    """lambda rises over 20 stairs of 100 steps; no guard; the value of the last stair is reported."""
    return RunConfig(
        name=f"published_recall_{length}",
        seed=seed,
        task=RecallConfig(length=length),
        model=PUBLISHED_MODEL,
        schedule=CurriculumConfig(
            penalty="mean_hard_gate", cost=cost, explore_steps=2500, solve_at=0.99, ramp_steps=2000, stairs=20,
            hold_steps=0, guard=0.0, back_off=0.0, stop_below=0.9,
        ),
        optim=OptimConfig(batch=_batch(length)),
        loop=LoopConfig(skip_below=0.0, eval_sequences=1024, savings=False, checkpoint_every=0),
    )  # fmt: skip


@recipe("published_joint", "the published failing arm: the cost from the first step")
def published_joint(cost: float = 0.5, length: int = 128, seed: int = 0) -> RunConfig:
    """As long as the whole published curriculum (4,500 steps), so that a late recovery would show."""
    base = published_recall(length, cost, seed)
    schedule = JointConfig(penalty="mean_hard_gate", cost=cost, steps=4500)
    return replace(base, name=f"published_joint_{length}", schedule=schedule)


@recipe("joint_recall", "our penalty per gate, but from the first step")
def joint_recall(cost: float = 0.02, length: int = 128, seed: int = 0) -> RunConfig:
    """The control of `recall_long`'s first length: same model, no curriculum."""
    base = recall_long(seed=seed)
    return replace(
        base,
        name="joint_recall",
        task=RecallConfig(length=length),
        schedule=JointConfig(cost=cost, steps=4500),
        loop=replace(base.loop, skip_below=0.0),
    )


@recipe("recall_published_model", "the published model, router included, under our curriculum")
def recall_published_model(seed: int = 0, router: str = "ema", noise: str = "gumbel") -> RunConfig:
    """What the published architecture reaches when the penalty, the schedule and the bound on gate logits change."""
    model = replace(PUBLISHED_MODEL, routing=RoutingConfig(router=router, noise=noise, max_logit=4.0))
    return RunConfig(
        name="recall_published_model",
        seed=seed,
        task=RecallConfig(length=128),
        model=model,
        schedule=CurriculumConfig(cost=0.02, explore_steps=2500, ramp_steps=1000, hold_steps=1000),
        optim=OptimConfig(batch=32, decay="cosine"),
        loop=LoopConfig(eval_sequences=1024, savings=False, checkpoint_every=0),
    )


@recipe("recall_long", "one gate at 128 tokens, then the length grown to 32,768")
def recall_long(seed: int = 0, lengths: tuple[int, ...] = LONG_LENGTHS) -> RunConfig:
    """The published model with a linear router: gates are closed at 128 tokens, each further length is a stage."""
    model = replace(PUBLISHED_MODEL, routing=RoutingConfig(router="linear"))
    return RunConfig(
        name="recall_long",
        seed=seed,
        task=RecallConfig(length=lengths[-1]),
        model=model,
        schedule=CurriculumConfig(
            cost=0.02, explore_steps=2500, ramp_steps=1000, hold_steps=1000, lengths=lengths, grow_steps=400,
            grow_at=0.9995,
        ),
        optim=OptimConfig(batch=32, max_tokens=65536, decay="cosine", precision="tf32"),
        loop=LoopConfig(eval_sequences=1024, savings=False, checkpoint_every=0),
    )  # fmt: skip


@recipe("hard_recall", "8 pairs, shared vocabulary, 8 queries, 512 tokens: learned against every control")
def hard_recall(router: str = "linear:bias=0", layout: str = "R", seed: int = 0, learned: bool = True) -> RunConfig:
    """Attention adds to the local track, so that the convolution can mark a value with its key while gates are open."""
    schedule = CurriculumConfig(
        cost=0.004, explore_steps=4500, solve_at=0.995, ramp_steps=1200 if learned else 1, hold_steps=500,
        guard=0.993 if learned else 0.0, back_off=0.9 if learned else 0.0,
    )  # fmt: skip
    return RunConfig(
        name="hard_recall",
        seed=seed,
        task=RecallHardConfig(),
        model=ModelConfig(
            layers=2, width=128, heads=4, layout=layout, local="conv:kernel=4",
            routing=RoutingConfig(router=router, mix="add"),
        ),
        schedule=schedule,
        optim=OptimConfig(batch=64, lr=1e-3, warmup=100, decay="cosine", precision="bf16"),
        loop=LoopConfig(eval_sequences=512, savings=False, checkpoint_every=0),
    )  # fmt: skip
