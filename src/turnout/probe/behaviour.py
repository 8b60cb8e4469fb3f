"""Two tests of what a model can do: copying a repeated text (induction) and a few facts.

B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError, DataError
from turnout.probe.heads import offset_score, patterns, strongest
from turnout.probe.taps import Edits, Taps

FACTS = (
    ("The capital of France is", " Paris"),
    ("The capital of Japan is", " Tokyo"),
    ("The capital of Italy is", " Rome"),
    ("The Eiffel Tower is located in the city of", " Paris"),
    ("The opposite of hot is", " cold"),
    ("Water is made of hydrogen and", " oxygen"),
    ("The largest planet of the solar system is", " Jupiter"),
    ("Romeo and Juliet was written by William", " Shakespeare"),
)


def repeated_tokens(
    symbols: Sequence[int], *, length: int = 50, sequences: int = 100, start: int = 0, seed: int = 0
) -> Tensor:
    """[start] + `length` random tokens + the same again, int64 [B, 1 + 2·length]."""
    if length < 2 or sequences < 1 or len(symbols) < 2:
        raise ConfigError(
            f"induction: length={length}, sequences={sequences}, {len(symbols)} symbols; expected length >= 2, a "
            "sequence and two symbols at least"
        )
    generator = torch.Generator().manual_seed(seed)
    pool = torch.as_tensor(list(symbols))
    once = pool[torch.randint(len(pool), (sequences, length), generator=generator)]
    return torch.cat((torch.full((sequences, 1), start), once, once), dim=1)


def induction(taps: Taps, tokens: Tensor, *, edits: Edits = (), batch: int = 50) -> float:
    """Top-1 accuracy on the second copy of `repeated_tokens`, from its second token on."""
    length = (tokens.shape[1] - 1) // 2
    hits = 0.0
    for part in tokens.split(batch):
        guess = taps.run(part[:, :-1], edits=edits).logits[:, length + 1 :].argmax(-1).cpu()
        hits += float((guess == part[:, length + 2 :]).double().sum())
    return hits / (len(tokens) * (length - 1))


def induction_heads(taps: Taps, tokens: Tensor, count: int) -> list[tuple[int, int]]:
    """The heads (layer, head) that attend most to the token after the last occurrence of the present one."""
    length = (tokens.shape[1] - 1) // 2
    weights = patterns(taps, tokens[:20, :-1])
    return strongest({i: offset_score(w, length - 1, length + 1) for i, w in weights.items()}, count)


@torch.no_grad()
def facts(
    taps: Taps, encode: Callable[[str], Sequence[int]], *, edits: Edits = (),
    prompts: Sequence[tuple[str, str]] = FACTS,
) -> list[dict[str, Any]]:  # fmt: skip
    """P(answer | prompt), token by token, and the rank of its first token (1 = the model's own choice).

    Args:
        encode: text -> token ids; an answer of several tokens has the product of their probabilities.
    Raises:
        DataError: a prompt or an answer has no tokens.
    """
    rows = []
    for prompt, answer in prompts:
        before, after = list(encode(prompt)), list(encode(answer))
        if not before or not after:
            raise DataError(f"fact {prompt!r} -> {answer!r} has no tokens; expected a prompt and an answer")
        logits = taps.run(torch.tensor([before + after[:-1]]), edits=edits).logits[0, len(before) - 1 :].double()
        chosen = torch.tensor(after, device=logits.device)
        p = logits.log_softmax(-1).gather(1, chosen[:, None]).sum().exp()
        rank = int((logits[0] > logits[0, chosen[0]]).sum()) + 1
        rows.append({"prompt": prompt, "answer": answer, "p": float(p), "rank": rank})
    return rows
