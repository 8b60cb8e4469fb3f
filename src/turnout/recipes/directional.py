"""Directional routing: the published 433M model and its baseline, the arms that were missing, and the same small.

Source: Taylor 2026, "Directional Routing in Transformers" (arXiv 2603.14923), sizes as its parameter counts pin them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from turnout.errors import ConfigError, nearest
from turnout.models.config import ModelConfig
from turnout.recipes.registry import recipe
from turnout.tasks import TextConfig
from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A backbone and how it is trained.

    Args:
        layers, width, heads: of the model; mlp_ratio: 4 is a SwiGLU of 8/3 E.
        matched_ratio: the smallest MLP ratio that has at least the parameters of the routed model.
        hidden: of the routers' MLP, E / 3 as published.
        length, batch, accumulate, steps, lr, warmup, decay: of training.
        vocab: 256 for bytes, otherwise BPE.
    """

    layers: int
    width: int
    heads: int
    matched_ratio: float
    hidden: int
    length: int
    batch: int
    steps: int
    lr: float
    warmup: int
    accumulate: int = 1
    vocab: int = 256


SIZES = {
    "433m": Size(
        layers=12, width=1536, heads=12, matched_ratio=6588 / 1536, hidden=512, length=1024, batch=16, accumulate=8,
        steps=20_000, lr=3e-4, warmup=500, vocab=50_257,
    ),
    "gpu": Size(
        layers=6, width=384, heads=6, matched_ratio=1656 / 384, hidden=128, length=512, batch=64, steps=600, lr=2e-3,
        warmup=60,
    ),
    "cpu": Size(
        layers=4, width=64, heads=4, matched_ratio=276 / 64, hidden=21, length=64, batch=16, steps=500, lr=4e-3,
        warmup=50,
    ),
}  # fmt: skip
ROUTERS = ("sequence", "prefix", "token", "static", "random")
ARMS = ("baseline", "matched", *ROUTERS, "gated")


def default_text() -> str:
    """The text of a directional run that names none: the variable TURNOUT_TEXT, or data/mixture."""
    return os.environ.get("TURNOUT_TEXT", "data/mixture")


def directional_model(size: str, arm: str) -> ModelConfig:
    """The model of one arm.

    Args:
        size: "433m", "gpu" or "cpu".
        arm: "baseline", "matched" (more MLP, at least as many parameters as the routed model), a direction router, or
            "gated" (elementwise sigmoid gate behind the attention, Qiu et al. 2025).
    """
    if arm not in ARMS:
        raise ConfigError(f"unknown directional arm {arm!r}{nearest(arm, ARMS)}")
    base = SIZES[size]
    options = f":hidden={base.hidden}" if arm in ("sequence", "prefix", "token") else ""
    leak = ",leak=true" if arm == "sequence" else ""
    return ModelConfig(
        layers=base.layers, width=base.width, heads=base.heads, layout="A", positions="rope", form="llama",
        mlp_ratio=base.matched_ratio if arm == "matched" else 4.0, tie=True,
        directions=f"{arm}{options}{leak}" if arm in ROUTERS else "none",
        output_gate="element" if arm == "gated" else "none",
    )  # fmt: skip


def directional_run(size: str, arm: str, path: str = "", seed: int = 0) -> RunConfig:
    """One arm at one size: AdamW, cosine to a tenth, half the learning rate for the routers, as published."""
    base = SIZES[size]
    bpe = base.vocab > 256
    big = size == "433m"
    return RunConfig(
        name=f"directional_{size}_{arm}",
        seed=seed,
        task=TextConfig(
            path=path or default_text(), length=base.length, tokenizer="bpe" if bpe else "bytes", vocab=base.vocab
        ),
        model=directional_model(size, arm),
        schedule=JointConfig(steps=base.steps),
        optim=OptimConfig(
            batch=base.batch, accumulate=base.accumulate, lr=base.lr, warmup=base.warmup, decay="cosine",
            weight_decay=0.1, directions_lr=0.5, precision="fp32" if size == "cpu" else "bf16",
            loss_chunk=8192 if big else 0,
        ),
        loop=LoopConfig(
            eval_every=1000 if big else base.steps, eval_sequences=64, final_sequences=256, skip_below=0.0,
            savings=False, checkpoint_every=500 if big else 0,
        ),
    )  # fmt: skip


@recipe(
    "directional_433m", "directional routing as published: 433,088,064 parameters, r pooled over the whole sequence"
)
def directional_433m(path: str = "", arm: str = "sequence", seed: int = 0) -> RunConfig:
    """12 layers of 1536, 4 directions a head; it reads the future, and `turnout certify` says so."""
    return directional_run("433m", arm, path, seed)


@recipe("directional_433m_baseline", "the published baseline without directions: 416,971,776 parameters")
def directional_433m_baseline(path: str = "", seed: int = 0) -> RunConfig:
    """The same training."""
    return directional_run("433m", "baseline", path, seed)


@recipe("directional_433m_matched", "the baseline with the routed model's parameters in its MLPs: 433,339,392")
def directional_433m_matched(path: str = "", seed: int = 0) -> RunConfig:
    """The control that the published comparison lacks."""
    return directional_run("433m", "matched", path, seed)


@recipe("directional_433m_prefix", "the published model made causal: r pooled over the prefix of each token")
def directional_433m_prefix(path: str = "", seed: int = 0) -> RunConfig:
    """As many parameters as the published one."""
    return directional_run("433m", "prefix", path, seed)


@recipe("directional_433m_gated", "the rival: a sigmoid gate on every element of the attention's output")
def directional_433m_gated(path: str = "", seed: int = 0) -> RunConfig:
    """Qiu et al. 2025 on the same backbone."""
    return directional_run("433m", "gated", path, seed)


@recipe("directional_gpu", "directional routing at 10M parameters on bytes; any arm by its model settings")
def directional_gpu(path: str = "", arm: str = "prefix", seed: int = 0) -> RunConfig:
    """Seconds on one GPU; 32,768 bytes a step."""
    return directional_run("gpu", arm, path, seed)


@recipe("directional_cpu", "directional routing, tiny, half a minute on one CPU core")
def directional_cpu(path: str = "", arm: str = "prefix", seed: int = 0) -> RunConfig:
    """1,024 bytes a step."""
    return directional_run("cpu", arm, path, seed)
