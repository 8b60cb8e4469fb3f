"""A task of random tokens with a target at every position and two domains, for probes that read text."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from turnout.tasks import Batch


class RandomText:
    """What `honest_perplexity` and the reports ask of a task; nothing to learn in it."""

    chance = None
    has_oracle = False
    config = SimpleNamespace(kind="random text")

    def __init__(self, *, vocab: int, length: int, domains: bool = True) -> None:
        self.vocab, self.length = vocab, length
        self.slice_names = {"domain": ["books", "code"]} if domains else {}

    def eval_batches(self, n_batches: int, n: int, seed_offset: int = 0) -> Iterator[Batch]:
        for i in range(n_batches):
            generator = torch.Generator().manual_seed(97 * seed_offset + i)
            ids = torch.randint(self.vocab, (n, self.length + 1), generator=generator)
            domain = (torch.arange(n) % 2)[:, None].expand(n, self.length)
            # The second domain has half the symbols.
            ids = torch.where(domain[:, :1] == 1, ids // 2, ids)
            at = torch.arange(self.length).repeat(n, 1)
            yield Batch(
                tokens=ids[:, :-1], at=at, targets=ids[:, 1:], hint=torch.zeros_like(at, dtype=torch.bool),
                slices={"domain": domain} if self.slice_names else {},
            )  # fmt: skip

    def decode_token(self, token: int) -> str:
        return chr(97 + token)
