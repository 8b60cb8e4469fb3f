"""Log-likelihood of given text under a model: the one measurement that LAMBADA and lm-eval are made of.

B sequences, T tokens, Q scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import SKIP


@dataclass(frozen=True, slots=True)
class Score:
    """Sum of the log probabilities of a continuation, its tokens, and whether greedy choice gives it."""

    log_prob: float
    tokens: int
    greedy: bool


class Scorer:
    """Scores continuations in batches, right-padded: nothing behind a sequence changes it.

    Args:
        model: put into evaluation mode.
        start: token that stands before text without a context (the document separator).
        longest: tokens of a pass; longer contexts lose their beginning.
        batch_tokens: most tokens a pass, padding included.
    """

    def __init__(self, model: CausalLM, *, start: int, longest: int, batch_tokens: int = 2**14) -> None:
        if longest < 2:
            raise ConfigError(f"longest={longest}; expected >= 2 tokens, one to read and one to score")
        self.model, self.start, self.longest = model.eval(), start, longest
        self.batch_tokens = batch_tokens

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """Score of each (context, continuation), in their order; an empty continuation scores 0.

        A continuation longer than `longest` is scored in windows, each as far to the left as it can start.
        """
        work: list[tuple[int, list[int], int]] = []
        for i, (context, continuation) in enumerate(pairs):
            work += [(i, window, count) for window, count in self._windows(list(context), list(continuation))]
        # Sequences of similar length share a batch.
        work.sort(key=lambda item: -len(item[1]))
        sums, tokens, greedy = [0.0] * len(pairs), [0] * len(pairs), [True] * len(pairs)
        while work:
            size = max(1, self.batch_tokens // len(work[0][1]))
            batch, work = work[:size], work[size:]
            log_probs, best = self._pass([window for _, window, _ in batch], [count for _, _, count in batch])
            for (i, _, count), log_prob, right in zip(batch, log_probs, best, strict=True):
                sums[i] += log_prob
                tokens[i] += count
                greedy[i] &= right
        return [Score(*item) for item in zip(sums, tokens, greedy, strict=True)]

    def _windows(self, context: list[int], continuation: list[int]) -> list[tuple[list[int], int]]:
        """(tokens, how many of the last are scored): each token of the continuation once, with all context there is."""
        whole = (context or [self.start]) + continuation
        first, windows = len(whole) - len(continuation), []
        while first < len(whole):
            # The token before the first scored one is read too.
            end = min(len(whole), max(first + 1, min(first - 1 + self.longest, len(whole))))
            begin = max(0, end - self.longest)
            windows.append((whole[begin:end], end - first))
            first = end
        return windows

    @torch.no_grad()
    def _pass(self, sequences: list[list[int]], counts: list[int]) -> tuple[list[float], list[bool]]:
        device = self.model.embed.weight.device
        length, most = max(map(len, sequences)), max(counts)
        ids = torch.zeros(len(sequences), length, dtype=torch.int64)
        at = torch.full((len(sequences), most), -1, dtype=torch.int64)
        for b, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            ids[b, : len(sequence)] = torch.tensor(sequence)
            at[b, :count] = torch.arange(len(sequence) - count - 1, len(sequence) - 1)
        wanted = ids.gather(1, (at + 1).clamp(min=0))
        out = self.model(ids[:, :-1].to(device), mode=SKIP, at=at.to(device))
        return _reduce(out.logits, wanted.to(device), (at >= 0).to(device))


def _reduce(logits: Tensor, wanted: Tensor, real: Tensor) -> tuple[list[float], list[bool]]:
    log_probs = logits.float().log_softmax(-1).gather(2, wanted[..., None])[..., 0]
    right = (logits.argmax(-1) == wanted) | ~real
    return torch.where(real, log_probs, 0.0).double().sum(1).tolist(), right.all(1).tolist()
