"""Zoology's MQAR (Figure 2) with this library's mixers: attention, convolution, state space, static hybrid, routed."""

from __future__ import annotations

from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes.registry import recipe
from turnout.tasks import MQARConfig
from turnout.train.config import CurriculumConfig, JointConfig, LoopConfig, OptimConfig, RunConfig

# (length, pairs) of the figure's first three panels.
CELLS = ((64, 4), (128, 8), (256, 16))
STATE_SPACE = "state space"
LAYOUTS = {"attention": "AA", "convolution": "LL", STATE_SPACE: "LL", "static hybrid": "LA", "routed": "RR"}
UNLEARNED = "unlearned"


@recipe("mqar", "Zoology's MQAR, 64 tokens and 4 pairs: a routed model under a curriculum")
def mqar(
    seed: int = 0, mixer: str = "routed", length: int = 64, pairs: int = 4, width: int = 64, lr: float = 2e-3,
    steps: int = 4000, router: str = "linear:bias=0", random_filler: bool = False,
) -> RunConfig:  # fmt: skip
    """Two layers, vocabulary 8,192, fresh data, filler zero as in the figure.

    Args:
        mixer: attention, convolution, state space, static hybrid, routed; "unlearned" is routed by a `router` that does
            not train.
        random_filler: random tokens between the pairs, so that not every filler token has been seen before.

    # paper: MLPs are kept (the figure has none), positions are rotary instead of learned, one learning rate.
    """
    routed = mixer == "routed"
    schedule = (
        CurriculumConfig(cost=0.004, explore_steps=steps, solve_at=0.99, ramp_steps=1000, hold_steps=400, guard=0.99)
        if routed
        else JointConfig(steps=steps)
    )
    return RunConfig(
        name=f"mqar_{mixer.replace(' ', '_')}_{length}",
        seed=seed,
        task=MQARConfig(length=length, pairs=pairs, random_filler=random_filler),
        model=ModelConfig(
            layers=2, width=width, heads=2, layout=LAYOUTS.get(mixer, "RR"), positions="rope",
            local="ssm" if mixer == STATE_SPACE else "conv:kernel=4", routing=RoutingConfig(router=router, mix="add"),
        ),
        schedule=schedule,
        optim=OptimConfig(batch=128, lr=lr, warmup=100, decay="cosine"),
        loop=LoopConfig(eval_every=200, eval_sequences=512, final_sequences=2048, savings=routed, checkpoint_every=0),
    )  # fmt: skip
