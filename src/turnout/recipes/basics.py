"""Starting points: each task with defaults that other recipes and the command line change."""

from __future__ import annotations

from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes.registry import recipe
from turnout.tasks import RecallConfig, RecallHardConfig, TextConfig
from turnout.train.config import BudgetConfig, CurriculumConfig, LoopConfig, OptimConfig, RunConfig


@recipe("recall", "recall as published, 128 tokens: default model, curriculum")
def recall(seed: int = 0) -> RunConfig:
    """Every default of the library."""
    return RunConfig(name="recall", seed=seed, task=RecallConfig(), model=ModelConfig(), schedule=CurriculumConfig())


@recipe("recall_hard", "hard recall, 512 tokens: 8 pairs and 8 queries anywhere, keys and values share a vocabulary")
def recall_hard(seed: int = 0) -> RunConfig:
    """Two layers: the pair has to be marked below before a query can find it."""
    return RunConfig(
        name="recall_hard",
        seed=seed,
        task=RecallHardConfig(),
        model=ModelConfig(layers=2, local="conv:kernel=4"),
        schedule=CurriculumConfig(cost=0.01, explore_steps=6000, ramp_steps=2000, hold_steps=600),
        optim=OptimConfig(warmup=100),
    )


@recipe("text", "next token on a text of your own, attention for 10 % of the tokens", needs={"path": "task.path"})
def text(path: str, seed: int = 0) -> RunConfig:
    """Bytes in windows of 256, rotary positions, usage steered by a budget.

    Args:
        path: a text file, or a folder of them.
    """
    return RunConfig(
        name="text",
        seed=seed,
        task=TextConfig(path=path),
        # A router that sees one byte can only take all spaces or none; this one sees the past too.
        model=ModelConfig(positions="rope", form="llama", routing=RoutingConfig(router="ema")),
        schedule=BudgetConfig(usage=0.1, steps=3000),
        optim=OptimConfig(batch=16, warmup=100, decay="cosine"),
        loop=LoopConfig(final_sequences=1024),
    )
