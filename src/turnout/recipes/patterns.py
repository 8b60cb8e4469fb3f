"""Recipes of how far to look: one small language model, one pattern each, on text of several domains; and MQAR."""

from __future__ import annotations

from turnout.models.config import ModelConfig
from turnout.recipes.registry import recipe
from turnout.tasks import MQARConfig, TextConfig
from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig

# Patterns that say themselves where a token is; the others are given rotary positions.
OWN_POSITIONS = ("alibi", "retnet", "power_law", "forget", "kerple", "fire", "cope")


def positions_of(pattern: str) -> str:
    """ "none" where the pattern orders tokens by itself, else "rope"."""
    return "none" if pattern.partition(":")[0] in OWN_POSITIONS else "rope"


@recipe(
    "pattern_gpu",
    "four layers on bytes at length 1,024, all attention: one pattern of how far heads read",
    needs={"path": "task.path"},
)
def pattern_gpu(
    path: str, pattern: str = "full", seed: int = 0, steps: int = 800, max_mb: float | None = None,
    weight_decay: float = 0.1,
) -> RunConfig:  # fmt: skip
    """16,384 bytes a step; about 20 seconds on one GPU.

    Args:
        path: a folder of text, one folder below it for each domain.
    """
    return RunConfig(
        name="pattern_gpu",
        seed=seed,
        task=TextConfig(path=path, length=1024, max_mb=max_mb),
        model=ModelConfig(
            layers=4, width=256, heads=8, layout="A", pattern=pattern, positions=positions_of(pattern), form="llama",
        ),
        schedule=JointConfig(steps=steps),
        optim=OptimConfig(
            batch=16, lr=2e-3, warmup=100, decay="cosine", precision="bf16", weight_decay=weight_decay
        ),
        loop=LoopConfig(eval_every=100, eval_sequences=64, final_sequences=512, savings=False, checkpoint_every=0),
    )  # fmt: skip


@recipe(
    "pattern_cpu",
    "two small layers on bytes at length 128, a minute on one CPU core: one pattern of how far heads read",
    needs={"path": "task.path"},
)
def pattern_cpu(path: str, pattern: str = "full", seed: int = 0, steps: int = 600) -> RunConfig:
    """2,048 bytes a step.

    Args:
        path: a folder of text, one folder below it for each domain.
    """
    return RunConfig(
        name="pattern_cpu",
        seed=seed,
        task=TextConfig(path=path, length=128),
        model=ModelConfig(
            layers=2, width=64, heads=8, layout="A", pattern=pattern, positions=positions_of(pattern), form="llama",
        ),
        schedule=JointConfig(steps=steps),
        optim=OptimConfig(batch=16, lr=4e-3, warmup=50, decay="cosine"),
        loop=LoopConfig(eval_every=100, eval_sequences=64, final_sequences=512, savings=False, checkpoint_every=0),
    )  # fmt: skip


@recipe("pattern_mqar", "MQAR at a length of choice: which patterns lose which associations")
def pattern_mqar(
    pattern: str = "full", seed: int = 0, length: int = 512, pairs: int = 32, steps: int = 1200
) -> RunConfig:
    """Two layers of width 128; gaps between a pair and its query are uniform."""
    return RunConfig(
        name="pattern_mqar",
        seed=seed,
        task=MQARConfig(length=length, pairs=pairs, power=1.0, random_filler=False),
        model=ModelConfig(
            layers=2, width=128, heads=8, layout="A", pattern=pattern, positions=positions_of(pattern), form="llama",
        ),
        schedule=JointConfig(steps=steps),
        optim=OptimConfig(batch=64, lr=2e-3, warmup=100, decay="cosine", precision="bf16"),
        loop=LoopConfig(eval_every=200, eval_sequences=256, final_sequences=1024, savings=False, checkpoint_every=0),
    )  # fmt: skip
