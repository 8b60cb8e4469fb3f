"""Continue prompts token by token, with a cache or without one: the same tokens and the same routes either way.

B sequences, T tokens, V vocabulary, G routing groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models.causal_lm import CausalLM, Output
from turnout.models.decode_step import DecodeStep
from turnout.routers.mode import SKIP, RoutingMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits, >= 0; 0 takes the most probable token (greedy).
        top_k: only the k most probable tokens; 0 = all.
        top_p: only the most probable tokens that together reach this probability, in (0, 1].
        seed: sequence b draws from seed and b alone, so that a batch gives what its sequences give alone.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.seed < 0:
            raise ConfigError(
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}, seed={self.seed}; expected "
                "temperature >= 0, top_k >= 0, 0 < top_p <= 1, seed >= 0"
            )

    def draws(self, sequence: int, count: int) -> Tensor:
        """Uniform numbers float64 [count] of one sequence."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + sequence)
        return torch.rand(count, generator=generator, dtype=torch.float64)


GREEDY = Sampling(temperature=0.0)


@dataclass(slots=True)
class Continuation:
    """What one prompt became.

    Attributes:
        tokens: the new ones, up to and including a stop token.
        taken: for each token that went through the model, prompt first, whether it attended, by layer with a router
            and group: bool [T, layers, G].
    """

    tokens: list[int] = field(default_factory=list)
    taken: list[list[list[bool]]] = field(default_factory=list)


def pick(logits: Tensor, sampling: Sampling, draw: Tensor) -> Tensor:
    """Next tokens int64 [B] from logits [B, V] by inverting the distribution at `draw` float64 [B] in [0, 1).

    Cost: one sort of V numbers a sequence; none when greedy.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs, order = (logits.double() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    total = probs.cumsum(-1)
    keep = torch.ones_like(probs, dtype=torch.bool)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    # The token that crosses top_p stays in.
    keep &= total - probs < sampling.top_p
    total = torch.where(keep, probs, 0.0).cumsum(-1)
    place = (total <= draw.to(total.device)[:, None] * total[:, -1:]).sum(-1)
    return order.gather(1, torch.minimum(place, keep.sum(-1) - 1)[:, None])[:, 0]


def check_prompts(prompts: Sequence[Sequence[int]], vocab: int, new_tokens: int, longest: int | None) -> None:
    """Refuse prompts that this model cannot continue.

    Raises:
        ShapeError: an empty prompt, a token outside the vocabulary, or more tokens than the model was trained on.
    """
    if not prompts or new_tokens < 1:
        raise ShapeError(f"{len(prompts)} prompts, new_tokens={new_tokens}; expected at least one of each")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ShapeError(f"prompt {i} is empty; expected at least one token (a line end will do)")
        worst = max(prompt)
        if worst >= vocab or min(prompt) < 0:
            raise ShapeError(
                f"prompt {i} holds token {worst}, but the model knows 0..{vocab - 1}; it was made with another "
                "tokenizer: use the one that the model was trained with"
            )
        if longest is not None and len(prompt) + new_tokens > longest:
            raise ShapeError(
                f"prompt {i} has {len(prompt)} tokens and {new_tokens} more are wanted, but the model was trained on "
                f"{longest}; ask for fewer, shorten the prompt, or allow it (--beyond)"
            )


@torch.no_grad()
def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling = GREEDY,
    stop: int | None = None,
    cached: bool = True,
    longest: int | None = None,
    on_tokens: Callable[[list[int], list[int]], None] | None = None,
) -> list[Continuation]:
    """Continue each prompt by up to `new_tokens` tokens.

    Prompts of one length run together. On a GPU the steps replay one CUDA graph where the model allows it.

    Args:
        model: put into evaluation mode.
        prompts: token ids, any lengths.
        stop: a sequence ends behind this token; None = never.
        cached: False runs the whole sequence again for every token (for checking).
        longest: the length that the model was trained on; longer is an error. None allows any.
        on_tokens: called after every step with the sequences that go on and their new tokens.
    Raises:
        ShapeError: see `check_prompts`.
    """
    check_prompts(prompts, model.vocab, new_tokens, longest)
    model.eval()
    results = [Continuation() for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        group = _Group(model, [list(prompts[i]) for i in rows], new_tokens, cached=cached)
        draws = torch.stack([sampling.draws(i, new_tokens) for i in rows])
        alive = [True] * len(rows)
        for step in range(new_tokens):
            tokens = pick(group.logits.float(), sampling, draws[:, step])
            told = tokens.tolist()
            group.record(results, rows, alive)
            for b, token in enumerate(told):
                if alive[b]:
                    results[rows[b]].tokens.append(token)
            if on_tokens is not None:
                on_tokens([rows[b] for b in range(len(rows)) if alive[b]], [t for b, t in enumerate(told) if alive[b]])
            alive = [live and token != stop for live, token in zip(alive, told, strict=True)]
            if not any(alive) or step == new_tokens - 1:
                break
            group.advance(tokens)
        group.close()
    return results


class _Group:
    """Prompts of one length, and the logits after their last token."""

    def __init__(self, model: CausalLM, prompts: list[list[int]], new_tokens: int, *, cached: bool) -> None:
        device = model.embed.weight.device
        self.model, self.cached = model, cached
        self.tokens = torch.tensor(prompts, device=device)
        self.mode: RoutingMode = SKIP
        self.step: DecodeStep | None = None
        self.state = None
        if cached:
            self.state = model.init_state(len(prompts), len(prompts[0]) + new_tokens)
        at = torch.full((len(prompts), 1), len(prompts[0]) - 1, device=device)
        self._keep(model(self.tokens, mode=self.mode, state=self.state, at=at), len(prompts[0]))
        if cached and device.type == "cuda":
            try:
                self.step = DecodeStep(model, self.state or [], mode=self.mode)
            except UnsupportedError:
                # A memory that counts on the host takes ordinary calls.
                self.step = None

    def advance(self, tokens: Tensor) -> None:
        """One more token a sequence, int64 [B]."""
        if not self.cached:
            self.tokens = torch.cat((self.tokens, tokens[:, None]), 1)
            at = torch.full((len(tokens), 1), self.tokens.shape[1] - 1, device=tokens.device)
            self._keep(self.model(self.tokens, mode=self.mode, at=at), 1)
        elif self.step is not None:
            self._keep(self.step(tokens[:, None]), 1)
        else:
            self._keep(self.model(tokens[:, None], mode=self.mode, state=self.state), 1)

    def _keep(self, out: Output, count: int) -> None:
        self.logits = out.logits[:, -1]
        routes = [route.taken[:, -count:] for route in out.routes if route is not None]
        self.taken = torch.stack(routes, 2) if routes else None

    def record(self, results: list[Continuation], rows: list[int], alive: list[bool]) -> None:
        """Write down who attended among the tokens of the last call."""
        if self.taken is None:
            return
        for b, taken in enumerate(self.taken.tolist()):
            if alive[b]:
                results[rows[b]].taken += taken

    def close(self) -> None:
        if self.step is not None:
            self.step.close()
