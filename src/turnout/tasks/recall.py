"""Recall, exactly as published: one key-value pair, noise, the key again.

    [key, value, noise x (T-3), key]      key ~ U{10..109}, value ~ U{110..209}, noise ~ U{210..vocab-1}; 0..9 unused

The target is the value, at the last position only; distance = T - 2. The task flatters routing: the value is the only
token of its class, so attention may ignore the key, and one position of T has a loss. `recall_hard` removes both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from turnout.errors import ConfigError
from turnout.tasks.batch import Batch
from turnout.tasks.synthetic import SyntheticTask

if TYPE_CHECKING:
    import torch

FIRST_KEY, FIRST_VALUE, FIRST_NOISE = 10, 110, 210


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """One pair at the start, the query at the end.

    Attributes:
        length: T >= 3; the distance from the query back to the value is T - 2.
        vocab: number of token ids >= 211; the ids from 210 up are noise (published: 256, so 46 noise tokens).
    """

    kind: ClassVar[str] = "recall"
    length: int = 128
    vocab: int = 256

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ConfigError(f"recall length={self.length}; expected at least 3: key, value and the key again")
        if self.vocab <= FIRST_NOISE:
            raise ConfigError(
                f"recall vocab={self.vocab}; expected at least {FIRST_NOISE + 1}: "
                f"ids up to {FIRST_NOISE - 1} are keys and values, noise comes after them"
            )

    @property
    def chance(self) -> float:
        """A guess among the 100 values."""
        return 1 / (FIRST_NOISE - FIRST_VALUE)

    def build(self, seed: int) -> SyntheticTask:
        """The task whose streams all derive from `seed`."""
        return SyntheticTask(self, seed=seed)

    def with_length(self, length: int) -> RecallConfig:
        """The same task at another sequence length."""
        return replace(self, length=length)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """n sequences; slices: distance = T - 2. Cost: O(n·T) integer draws."""
        import torch

        tokens = torch.empty(n, self.length, dtype=torch.int64)
        tokens.random_(FIRST_NOISE, self.vocab, generator=generator)
        key = torch.randint(FIRST_KEY, FIRST_VALUE, (n,), generator=generator)
        value = torch.randint(FIRST_VALUE, FIRST_NOISE, (n,), generator=generator)
        tokens[:, 0] = key
        tokens[:, 1] = value
        tokens[:, -1] = key
        hint = torch.zeros(n, self.length, dtype=torch.bool)
        hint[:, -1] = True
        return Batch(
            tokens=tokens,
            at=torch.full((n, 1), self.length - 1),
            targets=value[:, None],
            hint=hint,
            slices={"distance": torch.full((n, 1), self.length - 2)},
        )

    def decode_token(self, token: int) -> str:
        """`k7` = key number 7, `v7` = value, `n7` = noise, `u7` = unused."""
        for letter, first in (("n", FIRST_NOISE), ("v", FIRST_VALUE), ("k", FIRST_KEY)):
            if token >= first:
                return f"{letter}{token - first}"
        return f"u{token}"
