"""What every task hands out (`Batch`) and what every task is (`Task`).

Axes: B sequences, T positions, Q positions with a target. Nothing here imports torch: the CLI reads task configs first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One batch of sequences, where they are graded, and how the grades are grouped.

    Attributes:
        tokens: int64 [B, T].
        at: positions that have a target, int64 [B, Q], ascending; -1 = none.
        targets: the token wanted at `at`, int64 [B, Q].
        hint: bool [B, T], True where a query sits: what the oracle router is told.
        slices: name -> int64 [B, Q], the groups that metrics are split by.
        starts: int64 [B, T], the first position of each token's own document; None = a sequence is one.
    """

    tokens: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    hint: torch.Tensor
    slices: dict[str, torch.Tensor]
    starts: torch.Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on `device`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            tokens=move(self.tokens),
            at=move(self.at),
            targets=move(self.targets),
            hint=move(self.hint),
            slices={name: move(value) for name, value in self.slices.items()},
            starts=None if self.starts is None else move(self.starts),
        )


class Task(Protocol):
    """A seeded source of batches.

    Attributes:
        vocab: number of token ids; every token is in 0..vocab-1.
        length: T.
        chance: accuracy of a guess that ignores the sequence; None where that is undefined.
        has_oracle: whether `hint` marks the queries; False means that an oracle router is undefined here.
    """

    @property
    def config(self) -> TaskConfig:
        """The config that built it."""
        ...

    vocab: int
    length: int
    chance: float | None
    has_oracle: bool

    def train_batch(self, n: int) -> Batch:
        """The next n training sequences; advances the stream by one batch."""
        ...

    def eval_batches(self, n_batches: int, n: int, seed_offset: int = 0) -> Iterator[Batch]:
        """Fixed evaluation batches: every call with the same arguments gives the same ones."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state of the training stream."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a training stream exactly where `state_dict` was taken."""
        ...

    def decode_token(self, token: int) -> str:
        """A short printable name of one token."""
        ...


class TaskConfig(Protocol):
    """A frozen dataclass tagged by `kind`; building it twice with one seed gives the same stream."""

    kind: ClassVar[str]

    @property
    def length(self) -> int:
        """T."""
        ...

    def build(self, seed: int) -> Task:
        """The task whose streams all derive from `seed`."""
        ...

    def with_length(self, length: int) -> TaskConfig:
        """The same task at another sequence length (length curricula)."""
        ...
