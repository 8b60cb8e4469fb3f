"""Language models of 124M weights: routed, and its dense, static-hybrid, window-only and random-router controls."""

from __future__ import annotations

from turnout.errors import ConfigError, nearest
from turnout.models.config import ModelConfig, RoutingConfig, hybrid_layout
from turnout.recipes.registry import recipe
from turnout.tasks import TextConfig
from turnout.train.config import BudgetConfig, JointConfig, LoopConfig, OptimConfig, RunConfig

LAYERS = 12
VOCAB = 50257
USAGE = 0.25
"""Three attention layers of twelve: the usage of the static hybrid, so that all arms can be compared at it."""

ARMS = ("routed", "early", "even", "alternate", "dense", "static", "window", "random", "always")


def lm_run(
    path: str, arm: str, *, usage: float = USAGE, router: str = "ema", seed: int = 0, steps: int = 2000
) -> RunConfig:
    """One arm: 32 windows of 1,024 tokens a step, BPE of 50,257 tokens.

    Args:
        path: a text file, or a folder of them.
        arm: "routed", held at `usage` by its schedule; "early", the same from a tenth of the steps on; "even", early,
            every layer by itself; "alternate", a router in every second layer, the others a short convolution; "dense",
            attention in every layer; "static", in every layer of a number given by `usage`, a short convolution in the
            others; "window", 128 tokens in every layer; "random", `usage` of the slots by chance; "always", every slot
            beside the convolution.
        router: of the routed arms.
    Raises:
        ConfigError: an unknown arm.
    """
    if arm not in ARMS:
        raise ConfigError(f"arm={arm!r}{nearest(arm, ARMS)}")
    layouts = {"dense": "A", "window": "L", "static": hybrid_layout(LAYERS, usage), "alternate": "RL" * (LAYERS // 2)}
    layout = layouts.get(arm, "R")
    learned = dict.fromkeys(("routed", "early", "even", "alternate"), router)
    routers = {**learned, "random": f"random:p={usage}", "always": "always"}
    return RunConfig(
        name=f"lm_124m_{arm}",
        seed=seed,
        task=TextConfig(path=path, length=1024, tokenizer="bpe", vocab=VOCAB),
        # 85M weights in the blocks, 39M more in the embedding, which is the head too.
        model=ModelConfig(
            layers=LAYERS, width=768, heads=12, layout=layout, positions="rope", form="llama", tie=True,
            local="window:size=128" if arm == "window" else "conv:kernel=4,project=false",
            routing=RoutingConfig(router=routers.get(arm, "linear"), mix="add"),
        ),
        schedule=_schedule(arm, usage, steps),
        optim=OptimConfig(
            batch=32, lr=1e-3, weight_decay=0.1, beta2=0.95, warmup=min(100, steps // 10), decay="cosine",
            precision="bf16_stream", loss_chunk=32768, compile=True,
        ),
        loop=LoopConfig(
            log_every=10, eval_every=250, eval_sequences=64, final_sequences=512, skip_below=0.0, savings=False,
            checkpoint_every=1000,
        ),
    )  # fmt: skip


def _schedule(arm: str, usage: float, steps: int) -> BudgetConfig | JointConfig:
    """When the budget closes; later or earlier, it is the first layers that keep it (LM1), unless each has its own."""
    if arm in ("routed", "alternate"):
        # A budget counts the slots of layers with a router only.
        usage = usage if arm == "routed" else 2 * usage
        return BudgetConfig(usage=usage, steps=steps, warmup=0.3, ramp=0.4)
    if arm in ("early", "even"):
        return BudgetConfig(usage=usage, steps=steps, by_layer=arm == "even")
    return JointConfig(steps=steps)


@recipe(
    "lm_124m_routed", "12 layers, E=768: a router that sees the past, held at a quarter of the slots",
    needs={"path": "task.path"},
)  # fmt: skip
def lm_124m_routed(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """Routed attention added to a short convolution.

    Args:
        path: a text file, or a folder of them.
    """
    return lm_run(path, "routed", seed=seed, steps=steps)


@recipe("lm_124m_dense", "12 layers, E=768: attention in every layer, for every token", needs={"path": "task.path"})
def lm_124m_dense(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The dense control."""
    return lm_run(path, "dense", seed=seed, steps=steps)


@recipe(
    "lm_124m_static", "12 layers, E=768: attention in three layers of twelve, a short convolution in the others",
    needs={"path": "task.path"},
)  # fmt: skip
def lm_124m_static(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The static hybrid at the usage of the routed model."""
    return lm_run(path, "static", seed=seed, steps=steps)


@recipe(
    "lm_124m_window", "12 layers, E=768: a window of 128 tokens in every layer, no global attention",
    needs={"path": "task.path"},
)  # fmt: skip
def lm_124m_window(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The window-only control."""
    return lm_run(path, "window", seed=seed, steps=steps)


@recipe("lm_124m_random", "12 layers, E=768: a quarter of the slots, drawn at random", needs={"path": "task.path"})
def lm_124m_random(path: str, seed: int = 0, steps: int = 2000) -> RunConfig:
    """The random-router control at the usage of the routed model."""
    return lm_run(path, "random", seed=seed, steps=steps)
