"""Continue prompts token by token, with a cache or without one: the same tokens and the same routes either way.

B sequences, T tokens, V vocabulary, G routing groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models.causal_lm import CausalLM, Output, taken_of
from turnout.models.decode_step import DecodeStep
from turnout.models.ragged import batches_of, read_prompts
from turnout.routers.mode import SKIP


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
            and group: bool [T, layers, G] on the CPU; empty without a router.
    """

    tokens: list[int] = field(default_factory=list)
    taken: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.bool))


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
    compiler: str | None = None,
    on_tokens: Callable[[list[int], list[int]], None] | None = None,
) -> list[Continuation]:
    """Continue each prompt by up to `new_tokens` tokens.

    Prompts of one length are read together, and all of them are continued together, where the model allows it
    (`turnout.models.ragged`). On a GPU the steps replay one CUDA graph.

    Args:
        model: put into evaluation mode.
        prompts: token ids, any lengths.
        stop: a sequence ends behind this token; None = never.
        cached: False runs the whole sequence again for every token (for checking).
        longest: the length that the model was trained on; longer is an error. None allows any.
        compiler: backend of torch.compile for the steps, as in `DecodeStep`; None compiles nothing. It takes seconds,
            and pays where an answer takes longer.
        on_tokens: called after every step with the sequences that go on and their new tokens.
    Raises:
        ShapeError: see `check_prompts`.
        ConfigError: a compiler without a cache.
        UnsupportedError: a compiler, and a memory that counts on the host.
    """
    check_prompts(prompts, model.vocab, new_tokens, longest)
    if compiler is not None and not cached:
        raise ConfigError("compiled steps read a cache; leave out one of compiled and uncached")
    model.eval()
    results = [Continuation() for _ in prompts]
    for rows in batches_of(model, [len(prompt) for prompt in prompts]) if cached else _by_length(prompts):
        chosen = [list(prompts[i]) for i in rows]
        batch = _Cached(model, chosen, new_tokens, compiler) if cached else _Plain(model, chosen)
        draws = torch.stack([sampling.draws(i, new_tokens) for i in rows])
        # Without anybody who looks at tokens as they come, steps follow each other on the device.
        watched = stop is not None or on_tokens is not None
        alive, made = [True] * len(rows), []
        for step in range(new_tokens):
            tokens = pick(batch.logits, sampling, draws[:, step])
            made.append(tokens)
            if watched:
                told = tokens.tolist()
                if on_tokens is not None:
                    going = [b for b, live in enumerate(alive) if live]
                    on_tokens([rows[b] for b in going], [told[b] for b in going])
                alive = [live and token != stop for live, token in zip(alive, told, strict=True)]
            if not any(alive) or step == new_tokens - 1:
                break
            batch.advance(tokens)
        batch.close()
        _write(results, rows, torch.stack(made, 1).tolist(), stop, batch)
    return results


def _by_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    lengths = [len(prompt) for prompt in prompts]
    return [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]


def _write(results: list[Continuation], rows: list[int], made: list[list[int]], stop: int | None, batch: _Run) -> None:
    """Each sequence's tokens up to its stop, and who attended among those that went through the model."""
    steps = torch.cat(batch.steps, 1).cpu() if batch.steps else None
    for b, (row, tokens) in enumerate(zip(rows, made, strict=True)):
        end = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        results[row].tokens = tokens[:end]
        if batch.prompt_taken:
            parts = [batch.prompt_taken[b]] if steps is None else [batch.prompt_taken[b], steps[b, : end - 1]]
            results[row].taken = torch.cat(parts)


class _Run:
    """Prompts on their way: the logits after their last tokens, and who attended.

    Attributes:
        logits: [B, V]; prompt_taken: bool [T, layers, G] of each prompt; steps: bool [B, 1, layers, G] of each step.
    """

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self.device = model.embed.weight.device
        self.prompt_taken: list[Tensor] = []
        self.steps: list[Tensor] = []

    def advance(self, tokens: Tensor) -> None:
        """One more token a sequence, int64 [B]."""
        raise NotImplementedError

    def close(self) -> None:
        """No more steps."""

    def _read(self, out: Output, *, prompts: bool) -> None:
        self.logits = out.logits[:, -1]
        taken = taken_of(out.routes)
        if taken is None:
            return
        if prompts:
            self.prompt_taken = list(taken.cpu())
        else:
            self.steps.append(taken[:, -1:])


class _Plain(_Run):
    """The whole sequences again for every token; prompts are of one length."""

    def __init__(self, model: CausalLM, prompts: list[list[int]]) -> None:
        super().__init__(model)
        self.tokens = torch.tensor(prompts, device=self.device)
        self._read(self._whole(), prompts=True)

    def advance(self, tokens: Tensor) -> None:
        self.tokens = torch.cat((self.tokens, tokens[:, None]), 1)
        self._read(self._whole(), prompts=False)

    def _whole(self) -> Output:
        at = torch.full((len(self.tokens), 1), self.tokens.shape[1] - 1, device=self.device)
        return self.model(self.tokens, mode=SKIP, at=at)


class _Cached(_Run):
    """Prompts of any lengths behind one cache."""

    def __init__(self, model: CausalLM, prompts: list[list[int]], new_tokens: int, compiler: str | None) -> None:
        super().__init__(model)
        lengths = [len(prompt) for prompt in prompts]
        self.state, self.logits, self.prompt_taken = read_prompts(model, prompts, max(lengths) + new_tokens)
        self.step: DecodeStep | None = None
        ragged = len(set(lengths)) > 1
        if ragged or compiler is not None or self.device.type == "cuda":
            try:
                self.step = DecodeStep(
                    model, self.state, mode=SKIP, compiler=compiler, lengths=lengths if ragged else None
                )
            except UnsupportedError:
                if ragged or compiler is not None:
                    raise
                # A memory that counts on the host takes ordinary calls.
                self.step = None

    def advance(self, tokens: Tensor) -> None:
        if self.step is None:
            self._read(self.model(tokens[:, None], mode=SKIP, state=self.state), prompts=False)
            return
        self.logits = self.step(tokens[:, None]).logits[:, -1]
        if self.step.taken is not None:
            self.steps.append(self.step.taken.clone())

    def close(self) -> None:
        if self.step is not None:
            self.step.close()
