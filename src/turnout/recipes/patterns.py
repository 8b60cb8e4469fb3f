"""Recipes of how far to look: one small language model, one pattern each, on text of several domains; and retrieval."""

from __future__ import annotations

from turnout.errors import ConfigError, nearest
from turnout.models.config import ModelConfig
from turnout.recipes.registry import recipe
from turnout.tasks import MQARConfig, RecallConfig, RecallHardConfig, TextConfig
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
    weight_decay: float = 0.1, dropout: float = 0.0, layout: str = "A", local: str = "conv:kernel=16",
    compiled: bool = True,
) -> RunConfig:  # fmt: skip
    """16,384 bytes a step; about 20 seconds on one GPU.

    Args:
        path: a folder of text, one folder below it for each domain.
        layout, local: of the model.
        compiled: blocks are compiled, unless dropout needs a generator in them.
    """
    return RunConfig(
        name="pattern_gpu",
        seed=seed,
        task=TextConfig(path=path, length=1024, max_mb=max_mb),
        model=ModelConfig(
            layers=4, width=256, heads=8, layout=layout, local=local, pattern=pattern, form="llama",
            positions=positions_of(pattern), dropout=dropout,
        ),
        schedule=JointConfig(steps=steps),
        optim=OptimConfig(
            batch=16, lr=2e-3, warmup=min(100, steps // 4), decay="cosine", precision="bf16",
            weight_decay=weight_decay, compile=compiled and not dropout,
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


@recipe("pattern_retrieval", "one association among noise, several, or MQAR: which patterns lose which")
def pattern_retrieval(
    task: str = "needles", pattern: str = "full", seed: int = 0, length: int = 512, steps: int = 800,
    compiled: bool = False,
) -> RunConfig:  # fmt: skip
    """Convolution over four tokens, attention, convolution, attention; width 128, 32,768 tokens a step.

    Embedding and head share their weights, so that to copy a value is not to learn it anew for each.

    Args:
        task: "needles" (8 pairs at random places, as many distractors and questions), "MQAR" (32 pairs at the start,
            questions at uniform gaps) or "recall" (one pair at the start, one question at the end).
        compiled: blocks are compiled, which takes longer than a short stage.
    """
    tasks: dict[str, RecallHardConfig | MQARConfig | RecallConfig] = {
        "needles": RecallHardConfig(length=length, pairs=8, queries=8, distractors=8),
        # The generator wants more ids than positions: 16,384 of them.
        "MQAR": MQARConfig(length=length, pairs=32, vocab=16_640, power=1.0, random_filler=False),
        "recall": RecallConfig(length=length),
    }
    if task not in tasks:
        raise ConfigError(f"pattern_retrieval task={task!r}{nearest(task, tasks)}")
    return RunConfig(
        name="pattern_retrieval",
        seed=seed,
        task=tasks[task],
        model=ModelConfig(
            layers=4, width=128, heads=4, layout="LALA", local="conv:kernel=4", form="llama", tie=True,
            pattern=pattern if pattern == "full" else f"full / {pattern} / full / {pattern}",
        ),
        schedule=JointConfig(steps=steps),
        optim=OptimConfig(
            batch=256, max_tokens=2**15, lr=3e-3, warmup=50, decay="cosine", precision="bf16", compile=compiled
        ),
        loop=LoopConfig(eval_every=200, eval_sequences=64, final_sequences=256, savings=False, checkpoint_every=0),
    )  # fmt: skip
