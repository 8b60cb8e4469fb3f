"""Tasks whose sequences are drawn fresh for every batch: one class for all of them, the config draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from turnout.errors import ConfigError
from turnout.tasks.batch import Batch
from turnout.tasks.stream import TrainStream, generator

if TYPE_CHECKING:
    import torch


class SyntheticConfig(Protocol):
    """What a config offers so that `SyntheticTask` can serve it."""

    kind: ClassVar[str]

    @property
    def length(self) -> int:
        """T."""
        ...

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        ...

    @property
    def chance(self) -> float:
        """Accuracy of a guess that ignores the sequence."""
        ...

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh sequences from `generator`."""
        ...

    def decode_token(self, token: int) -> str:
        """A short printable name of one token."""
        ...

    def build(self, seed: int) -> SyntheticTask:
        """The task of this config."""
        ...

    def with_length(self, length: int) -> SyntheticConfig:
        """The same config at another length."""
        ...


class SyntheticTask:
    """Streams of freshly drawn batches: the training stream moves, the evaluation batches are fixed (see `Task`)."""

    has_oracle = True

    def __init__(self, config: SyntheticConfig, *, seed: int) -> None:
        self.config = config
        self.vocab = config.vocab
        self.length = config.length
        self.chance: float | None = config.chance
        self._seed = seed
        self._stream = TrainStream(kind=config.kind, seed=seed)

    def train_batch(self, n: int) -> Batch:
        """The next n training sequences; advances the stream by one batch."""
        check_count("n", n)
        return self.config.draw(n, self._stream.next())

    def eval_batches(self, n_batches: int, n: int, seed_offset: int = 0) -> Iterator[Batch]:
        """`n_batches` fixed batches of n sequences; another `seed_offset` gives a disjoint set of draws."""
        check_count("n_batches", n_batches)
        check_count("n", n)
        purpose = f"{self.config.kind}/eval/{seed_offset}"
        return (self.config.draw(n, generator(self._seed, purpose, i)) for i in range(n_batches))

    def state_dict(self) -> dict[str, Any]:
        """State of the training stream: {"kind", "seed", "position"}."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the training stream exactly; CheckpointError for another task's or seed's state."""
        self._stream.load_state_dict(state)

    def decode_token(self, token: int) -> str:
        """A short printable name of one token."""
        check_token(token, self.vocab)
        return self.config.decode_token(int(token))


def check_count(name: str, value: int) -> None:
    """Raise ConfigError unless value >= 1."""
    if value < 1:
        raise ConfigError(f"{name}={value}; expected at least 1")


def check_token(token: int, vocab: int) -> None:
    """Raise ConfigError unless 0 <= token < vocab."""
    if not 0 <= token < vocab:
        raise ConfigError(f"token {token} is outside the vocabulary; expected 0..{vocab - 1}")
