"""Recipes on real text: a routed byte-level model beside dense, local-only, static-hybrid and unlearned routers."""

from __future__ import annotations

from dataclasses import replace

from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes.registry import recipe
from turnout.tasks import TextConfig
from turnout.train.config import BudgetConfig, LoopConfig, OptimConfig, RunConfig

USAGE = 1 / 6
"""One of six layers: the usage of the static hybrid, so that all routers can be compared with it."""


@recipe(
    "text_gpu",
    "six layers on bytes: learned routing against its controls at one sixth of the usage",
    needs={"path": "task.path"},
)
def text_gpu(path: str, router: str = "ema", layout: str = "R", seed: int = 0, steps: int = 1500) -> RunConfig:
    """16,384 bytes a step at length 512; minutes on one GPU.

    Args:
        path: a text file, or a folder of them.
    """
    return RunConfig(
        name="text_gpu",
        seed=seed,
        task=TextConfig(path=path, length=512),
        model=ModelConfig(
            layers=6, width=256, heads=8, layout=layout, local="conv:kernel=16,project=false", positions="rope",
            form="llama", routing=RoutingConfig(router=router, mix="add"),
        ),
        schedule=BudgetConfig(usage=USAGE, steps=steps),
        optim=OptimConfig(batch=32, lr=2e-3, warmup=100, decay="cosine", precision="bf16"),
        loop=LoopConfig(
            eval_every=250, eval_sequences=256, final_sequences=1024, skip_below=0.0, savings=False, checkpoint_every=0
        ),
    )  # fmt: skip


@recipe(
    "text_cpu",
    "four small layers on bytes, a minute on one CPU core: learned routing against its controls at a quarter",
    needs={"path": "task.path"},
)
def text_cpu(path: str, router: str = "ema", layout: str = "R", seed: int = 0) -> RunConfig:
    """2,048 bytes a step at length 128.

    Args:
        path: a text file, or a folder of them.
    """
    base = text_gpu(path, router, seed=seed)
    return replace(
        base,
        name="text_cpu",
        task=TextConfig(path=path, length=128),
        model=replace(base.model, layers=4, width=64, heads=4, layout=layout, local="conv:kernel=4,project=false"),
        schedule=BudgetConfig(usage=0.25, steps=600),
        optim=OptimConfig(batch=16, lr=4e-3, warmup=50, decay="cosine"),
        loop=replace(base.loop, eval_every=200, eval_sequences=64, final_sequences=512),
    )
