"""Generation: with a cache or without one, alone or in a batch, the same tokens and the same routes."""

from __future__ import annotations

import pytest
import torch

from routing_laws import awake, tiny
from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models.decode_step import DecodeStep
from turnout.models.generate import GREEDY, Sampling, generate, pick
from turnout.models.ragged import batches_of

PROMPTS = [[1, 2, 3, 4, 5], [3, 1], [7, 7, 7, 2, 1], [2]]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, top_k=9, top_p=0.9, seed=3)])
@pytest.mark.parametrize(
    ("router", "changes"),
    [
        ("linear", {}),
        ("ema", {"positions": "rope"}),
        ("linear", {"local": "window:size=3"}),
        ("linear", {"layout": "AL"}),
        ("linear", {"granularity": "group", "positions": "rope", "form": "llama"}),
        ("linear", {"pattern": "window:size=4"}),
    ],
)
def test_with_a_cache_tokens_and_routes_are_those_without_one(router: str, changes: dict, sampling: Sampling) -> None:
    model = awake(tiny(router, **changes))
    cached = generate(model, PROMPTS, new_tokens=8, sampling=sampling)
    plain = generate(model, PROMPTS, new_tokens=8, sampling=sampling, cached=False)
    routed = "R" in model.config.layer_kinds
    for a, b, prompt in zip(cached, plain, PROMPTS, strict=True):
        assert a.tokens == b.tokens and len(a.tokens) == 8
        assert torch.equal(a.taken, b.taken) and len(a.taken) == (len(prompt) + 7 if routed else 0)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    model = awake(tiny("linear"))
    sampling = Sampling(temperature=1.5, seed=1)
    together = generate(model, PROMPTS, new_tokens=6, sampling=sampling)
    assert generate(model, PROMPTS[:1], new_tokens=6, sampling=sampling)[0].tokens == together[0].tokens
    assert generate(model, [PROMPTS[0]] * 2, new_tokens=6, sampling=GREEDY)[1].tokens == (
        generate(model, PROMPTS[:1], new_tokens=6)[0].tokens
    )


@pytest.mark.parametrize(
    ("router", "changes", "together"),
    [
        ("ema", {"positions": "rope"}, [[3, 1, 0, 2]]),
        ("linear", {"local": "window:size=3"}, [[3, 1, 0, 2]]),
        ("random", {}, [[3], [1], [0, 2]]),
        ("linear", {"pattern": "window:size=4"}, [[3], [1], [0, 2]]),
    ],
)
def test_prompts_of_several_lengths_step_together_where_memories_are_by_sequence(
    router: str, changes: dict, together: list[list[int]]
) -> None:
    assert batches_of(awake(tiny(router, **changes)), [len(prompt) for prompt in PROMPTS]) == together


def test_lengths_that_the_steps_cannot_tell_apart_are_refused() -> None:
    model = awake(tiny("linear", pattern="window:size=4"))
    with pytest.raises(UnsupportedError, match="one length each"):
        DecodeStep(model, model.init_state(2, 8), lengths=[1, 3])


def test_steps_that_cannot_be_compiled_never_turn_into_others() -> None:
    with pytest.raises(UnsupportedError, match="counts on the host"):
        generate(awake(tiny("random")), PROMPTS[:1], new_tokens=6, compiler="eager")
    with pytest.raises(ConfigError, match="uncached"):
        generate(awake(tiny("linear")), PROMPTS[:1], new_tokens=6, compiler="eager", cached=False)


def test_the_next_token_is_drawn_from_the_softmax_cut_to_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    draws = torch.linspace(0, 1, 20001, dtype=torch.float64)[:-1]
    for sampling, keep in (
        (Sampling(), [0, 1, 2, 3]),
        (Sampling(temperature=0.5), [0, 1, 2, 3]),
        (Sampling(top_k=2), [1, 2]),
        (Sampling(top_p=0.7), [1, 2]),
        (Sampling(top_p=0.1), [1]),
    ):
        drawn = pick(logits.expand(len(draws), -1), sampling, draws)
        share = torch.bincount(drawn, minlength=4).double() / len(draws)
        wanted = (logits[0].double() / sampling.temperature).softmax(-1)
        wanted = torch.zeros(4, dtype=torch.float64).index_copy(0, torch.tensor(keep), wanted[keep])
        # One grid cell at each end of each interval.
        assert float((share - wanted / wanted.sum()).abs().max()) <= 2 / 20000


def test_a_stop_token_ends_its_sequence_only() -> None:
    model = awake(tiny("linear"))
    free = generate(model, PROMPTS, new_tokens=8)
    stop = free[0].tokens[2]
    seen: list[tuple[list[int], list[int]]] = []
    stopped = generate(model, PROMPTS, new_tokens=8, stop=stop, on_tokens=lambda rows, new: seen.append((rows, new)))
    for a, b in zip(stopped, free, strict=True):
        end = b.tokens.index(stop) + 1 if stop in b.tokens else 8
        assert a.tokens == b.tokens[:end]
    streamed: dict[int, list[int]] = {}
    for rows, new in seen:
        for row, token in zip(rows, new, strict=True):
            streamed.setdefault(row, []).append(token)
    assert [streamed[i] for i in range(len(PROMPTS))] == [item.tokens for item in stopped]


def test_what_cannot_be_continued_is_refused() -> None:
    model = awake(tiny("linear"))
    with pytest.raises(ShapeError, match="another tokenizer"):
        generate(model, [[1, model.vocab]], new_tokens=1)
    with pytest.raises(ShapeError, match="prompt 1 is empty"):
        generate(model, [[1], []], new_tokens=1)
    with pytest.raises(ShapeError, match="trained on 8"):
        generate(model, [[1, 2, 3]], new_tokens=6, longest=8)
    with pytest.raises(ConfigError, match="top_p"):
        Sampling(top_p=0.0)
