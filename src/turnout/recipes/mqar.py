"""Zoology's MQAR (Figure 2) with this library's mixers: attention, convolution, state space, static hybrid, routed."""

from __future__ import annotations

from dataclasses import replace

from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes.registry import recipe
from turnout.tasks import MQARConfig
from turnout.train.config import CurriculumConfig, JointConfig, LoopConfig, OptimConfig, RunConfig

# (length, pairs): the panels of the figure but (512, 64), which its configuration leaves out too: no mixer learns 64
# pairs in 3,000 steps.
CELLS = ((64, 4), (128, 8), (256, 16))
WIDTHS = (64, 128, 256)
# Ours: lengths at which skipping pays, grown from `SEED_LENGTH`. Width 64 only, beside attention.
LONG = ((1024, 8), (2048, 8), (4096, 8))
SEED_LENGTH = 128
# The sweep of every mixer; Zoology's own is 1e-4 to 1e-2 in four steps.
LRS = (3e-4, 1e-3, 3e-3, 1e-2)
STATE_SPACE = "state space"
SELECTED = "selected blocks"
LAYOUTS = {
    "attention": "AA", "convolution": "LL", STATE_SPACE: "LL", "static hybrid": "LA", "routed": "RR", SELECTED: "LA",
}  # fmt: skip
UNLEARNED = "unlearned"
TOKENS_A_STEP = 2**13


@recipe("mqar", "Zoology's MQAR, 64 tokens and 4 pairs: a routed model under a curriculum")
def mqar(
    seed: int = 0, mixer: str = "routed", length: int = 64, pairs: int = 4, width: int = 64, lr: float = 3e-3,
    steps: int = 0, router: str = "linear:bias=0", random_filler: bool = False,
) -> RunConfig:  # fmt: skip
    """Two layers, vocabulary 8,192, fresh data, filler zero as in the figure, training ends at 99.5 % held out.

    Embedding and head are one matrix of N(0, 0.02): copying a value is then there from the start, and only where to
    copy from has to be learned. With two matrices and PyTorch's N(0, 1) embeddings attention spends thousands of steps
    on a map of 4,096 values to themselves.

    Args:
        mixer: attention, convolution (gated, as long as the sequence), state space, static hybrid (a convolution of
            four taps, then attention), selected blocks (the same, each query reads two blocks of 16 tokens and its
            own), routed (that convolution, and attention for whom it pays); "unlearned" is routed by a `router` that
            does not train.
        length: from `LONG` on the task is learned at 128 tokens first, whatever the mixer, and then grown.
        steps: most steps, of the first length; 0 = 3,000, and 8,000 from 16 pairs on.
        random_filler: random tokens between the pairs, so that not every filler token has been seen before.

    # paper: MLPs are kept (the figure has none), positions are rotary instead of learned, data are fresh, not 64 epochs
    # of 100,000 sequences.
    """
    long = length >= LONG[0][0]
    lengths = _stages(length) if long else ()
    first = SEED_LENGTH if long else length
    steps = steps or (3000 if pairs < 16 else 8000)
    local = {STATE_SPACE: "ssm", "convolution": f"conv:kernel={length},gate=true"}.get(mixer, "conv:kernel=4")
    return RunConfig(
        name=f"mqar_{mixer.replace(' ', '_')}_{length}",
        seed=seed,
        task=MQARConfig(length=length, pairs=pairs, random_filler=random_filler),
        model=ModelConfig(
            layers=2, width=width, heads=max(1, width // 64), layout=LAYOUTS.get(mixer, "RR"), positions="rope",
            form="llama", tie=True, local=local,
            pattern="full/top_blocks:block=16,keep=2" if mixer == SELECTED else "full",
            routing=RoutingConfig(router=router, mix="add"),
        ),
        schedule=_schedule(mixer, lengths, pairs, steps),
        optim=OptimConfig(
            batch=TOKENS_A_STEP // first, max_tokens=TOKENS_A_STEP if long else 0, lr=lr, warmup=100, decay="cosine",
            weight_decay=0.1, precision="tf32",
        ),
        loop=LoopConfig(
            eval_every=100, eval_sequences=64 if long else 512, final_sequences=512 if long else 2048,
            savings=mixer == "routed", checkpoint_every=0,
        ),
    )  # fmt: skip


def _stages(length: int) -> tuple[int, ...]:
    """`SEED_LENGTH`, four times as long each, up to `length`."""
    stages = [SEED_LENGTH]
    while stages[-1] < length:
        stages.append(min(4 * stages[-1], length))
    return tuple(stages)


def _schedule(mixer: str, lengths: tuple[int, ...], pairs: int, steps: int) -> CurriculumConfig | JointConfig:
    """Routed mixers close their gates once the task is solved; whatever grows needs stages too, and costs nothing."""
    grown = CurriculumConfig(explore_steps=steps, solve_at=0.98, lengths=lengths, grow_steps=600, grow_at=0.99)
    if mixer == "routed":
        # A needed gate is worth ln(4,096) / pairs nats a sequence; a hundredth of that is what a gate costs.
        return replace(grown, cost=0.08 / pairs, ramp_steps=1000, hold_steps=400, guard=0.98)
    if lengths:
        return replace(grown, cost=0.0, ramp_steps=1, hold_steps=400, guard=0.98)
    return JointConfig(steps=steps, solve_at=0.995)
