"""Configuration of runs that train together as one stacked model; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from turnout.errors import ConfigError
from turnout.models.testbed_config import TestBedConfig
from turnout.tasks import RetrievalConfig, TrailingMQARConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BedRunConfig:
    """One arm of the content-routing study at one seed; every learning rate is a run of its own.

    Args:
        name: of the arm.
        seed: of data and weights.
        task: what is routed.
        model: the test bed.
        lrs: peak learning rates, one run each.
        steps: optimiser steps; 0 evaluates the untrained model.
        batch: sequences a step.
        train_sequences: size of the fixed training set, reused in epochs; 0 draws fresh data for every step.
        test_sequences: held-out sequences of the final evaluation.
        weight_decay: AdamW's.
        clip: gradient norm per run; 0 = off.
        answer: train the council too (task loss + λ · routing loss, λ from 1 to 0.1); False trains the router alone.
        freeze_flow: keep embeddings and flow as initialised, train what comes after (the frozen-model control).
        evaluations: points of the curve.
        tops: numbers of picks at which the final precision is reported too, beside the model's own.
        band: tokens of a band of distance between query and evidence, by which it is reported too; 0 = not.
    """

    name: str = "bed"
    seed: int = 0
    task: RetrievalConfig | TrailingMQARConfig = field(default_factory=RetrievalConfig)
    model: TestBedConfig = field(default_factory=TestBedConfig)
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    steps: int = 10_000
    batch: int = 32
    train_sequences: int = 8000
    test_sequences: int = 2000
    weight_decay: float = 0.01
    clip: float = 1.0
    answer: bool = False
    freeze_flow: bool = False
    evaluations: int = 25
    tops: tuple[int, ...] = ()
    band: int = 0

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0:
            raise ConfigError(f"lrs={self.lrs}; expected one or more learning rates > 0")
        limits = {"steps": 0, "batch": 1, "train_sequences": 0, "test_sequences": 1, "seed": 0, "band": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}; expected at least {least}")
        if min(self.tops, default=1) < 1:
            raise ConfigError(f"tops={self.tops}; expected numbers of picks >= 1")
        if 0 < self.train_sequences < self.batch:
            raise ConfigError(f"train_sequences={self.train_sequences} is less than one batch of {self.batch}")
