"""Random streams of a task: one per purpose, all from one seed, addressable by batch number.

A stream is (seed, purpose); its batch number i has its own generator. So the state of a stream is one integer, resuming
is exact whatever the batch sizes were, and reading an evaluation batch can never disturb training.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from turnout.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# torch's CPU generator (MT19937) reads only the low 32 bits of a seed.
_SEED_BITS = 32


def generator(seed: int, purpose: str, position: int) -> torch.Generator:
    """CPU generator of batch number `position` of the stream (seed, purpose).

    seed' = (hash32(seed, purpose) + position) mod 2^32, so no two of a stream's first 2^32 batches share a generator.
    """
    import torch

    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=_SEED_BITS // 8).digest()
    number = (int.from_bytes(digest, "big") + position) % 2**_SEED_BITS
    return torch.Generator().manual_seed(number)


class TrainStream:
    """Position in a training stream: `next()` gives the next batch's generator."""

    def __init__(self, *, kind: str, seed: int) -> None:
        self.kind = kind
        self.seed = seed
        self.position = 0

    def next(self) -> torch.Generator:
        """Generator of the next batch; advances by one."""
        drawn = generator(self.seed, f"{self.kind}/train", self.position)
        self.position += 1
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """{"kind", "seed", "position"}: position = batches drawn so far."""
        return {"kind": self.kind, "seed": self.seed, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the stored position.

        The length may differ from the one the state was saved at (length curricula); kind and seed may not.

        Raises:
            CheckpointError: a key is missing or malformed, or the state belongs to another task or seed.
        """
        for name in ("kind", "seed"):
            own = getattr(self, name)
            if state.get(name) != own:
                raise CheckpointError(
                    f"task state has {name}={state.get(name)!r} but this task has {name}={own!r}; "
                    f"build the task with the {name} of the run that is resumed"
                )
        position = state.get("position")
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise CheckpointError(
                f"task state has position={position!r}; expected the number of batches drawn, an int >= 0"
            )
        self.position = position
