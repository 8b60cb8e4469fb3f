"""Language models of 124M weights: routed, and its dense, static-hybrid, window-only and random-router controls."""

from __future__ import annotations

from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes.registry import recipe
from turnout.tasks import TextConfig
from turnout.train.config import BudgetConfig, JointConfig, LoopConfig, OptimConfig, RunConfig

USAGE = 0.25
"""Three attention layers of twelve: the usage of the static hybrid, so that all arms can be compared at it."""

HYBRID = "LLLALLLALLLA"


def _run(path: str, name: str, model: ModelConfig, *, steps: int, budget: bool, seed: int) -> RunConfig:
    """32 windows of 1,024 tokens a step."""
    return RunConfig(
        name=name,
        seed=seed,
        task=TextConfig(path=path, length=1024),
        model=model,
        schedule=BudgetConfig(usage=USAGE, steps=steps) if budget else JointConfig(steps=steps),
        optim=OptimConfig(
            batch=32, lr=6e-4, weight_decay=0.1, beta2=0.95, warmup=100, decay="cosine", precision="bf16_stream",
            loss_chunk=8192, compile=True,
        ),
        loop=LoopConfig(
            log_every=10, eval_every=250, eval_sequences=64, final_sequences=512, skip_below=0.0, savings=False,
            checkpoint_every=1000,
        ),
    )  # fmt: skip


def _model(layout: str, *, router: str = "linear", local: str = "conv:kernel=4,project=false") -> ModelConfig:
    """12 layers, E = 768, 12 heads: 85M weights in the blocks, 39M more with a vocabulary of 50,304."""
    return ModelConfig(
        layers=12, width=768, heads=12, layout=layout, local=local, positions="rope", form="llama", tie=True,
        routing=RoutingConfig(router=router, mix="add"),
    )  # fmt: skip


@recipe(
    "lm_124m_routed", "12 layers, E=768: a linear router held at a quarter of the slots", needs={"path": "task.path"}
)
def lm_124m_routed(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """Routed attention added to a short convolution.

    Args:
        path: a text file, or a folder of them.
    """
    return _run(path, "lm_124m_routed", _model("R"), steps=steps, budget=True, seed=seed)


@recipe("lm_124m_dense", "12 layers, E=768: attention in every layer, for every token", needs={"path": "task.path"})
def lm_124m_dense(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The dense control."""
    return _run(path, "lm_124m_dense", _model("A"), steps=steps, budget=False, seed=seed)


@recipe(
    "lm_124m_static", "12 layers, E=768: attention in three layers of twelve, a short convolution in the others",
    needs={"path": "task.path"},
)  # fmt: skip
def lm_124m_static(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The static hybrid at the usage of the routed model."""
    return _run(path, "lm_124m_static", _model(HYBRID), steps=steps, budget=False, seed=seed)


@recipe(
    "lm_124m_window", "12 layers, E=768: a window of 128 tokens in every layer, no global attention",
    needs={"path": "task.path"},
)  # fmt: skip
def lm_124m_window(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The window-only control."""
    return _run(path, "lm_124m_window", _model("L", local="window:size=128"), steps=steps, budget=False, seed=seed)


@recipe("lm_124m_random", "12 layers, E=768: a quarter of the slots, drawn at random", needs={"path": "task.path"})
def lm_124m_random(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The random-router control at the usage of the routed model."""
    model = _model("R", router=f"random:p={USAGE}")
    return _run(path, "lm_124m_random", model, steps=steps, budget=False, seed=seed)
