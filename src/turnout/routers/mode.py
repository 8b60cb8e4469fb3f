"""How a forward pass executes routing: which rows are really computed, and where the gate noise comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turnout.errors import ConfigError, nearest
from turnout.ops.compact import POLICIES, Overflow


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingMode:
    """Execution of one forward pass; it never changes what a decision means, except through overflow.

    Args:
        skip: True computes attention for the rows taken only; False computes both tracks for every token (the dense
            phase of training, in which both tracks get gradient).
        capacity: most rows a sequence and routing group can take; static, so shapes never change and the GPU is never
            waited for. None = exactly the largest count of the batch (one host synchronisation a layer on a GPU).
        overflow: what happens past `capacity`: keep the "earliest" rows, the most "confident", or "raise".
        sample: True draws the gates (training); False takes the deterministic decision gate_logit > 0.
        generator: source of the gate noise, on the model's device; required when `sample` is True and the gates are
            noisy, because the global generator is never read.
        impl: implementation of `turnout.ops.attend` ("auto", or one by name).
        tokens: ids int64 [B, T] of this pass, for routers that look tokens up; models fill it in.
        starts: int64 [B, T], where several documents are packed into one sequence: the first position of each token's
            own one, before which nothing is seen. None = one document.
        noise: gate noise float32 [B, T, G] drawn before the call, instead of `generator`: compiled code holds none.
    Raises:
        ConfigError: capacity < 1, or an unknown overflow policy.
    """

    skip: bool = True
    capacity: int | None = None
    overflow: Overflow = "earliest"
    sample: bool = False
    generator: torch.Generator | None = None
    impl: str = "auto"
    noise: Tensor | None = None
    tokens: Tensor | None = None
    starts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise ConfigError(f"capacity={self.capacity}; expected >= 1 row per sequence, or None for the exact count")
        if self.overflow not in POLICIES:
            raise ConfigError(f"overflow={self.overflow!r}{nearest(self.overflow, POLICIES)}")

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Gate noise: float32 in [0, 1), drawn from the gate generator.

        Raises:
            ConfigError: the mode samples and has no generator.
        """
        if self.noise is not None and self.noise.shape == torch.Size(shape):
            return self.noise
        if self.generator is None:
            raise ConfigError(
                "RoutingMode(sample=True) has no generator and these gates are random; pass "
                "generator=torch.Generator(device), or sample=False for the deterministic decision"
            )
        return torch.rand(shape, generator=self.generator, device=device, dtype=torch.float32)


DENSE = RoutingMode(skip=False)
SKIP = RoutingMode(skip=True)
