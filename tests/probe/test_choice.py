"""Multiple choice: who knows what follows is right, who knows nothing is at chance, and a leak reads the ending."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from routing_laws import VOCAB, awake, tiny
from turnout.errors import ConfigError
from turnout.models import CausalLM
from turnout.probe.anatomy import Anatomy
from turnout.probe.choice import multiple_choice, option_losses, questions_of

from .conftest import RandomText

LENGTH = 48


class Counting(RandomText):
    """Windows that count on from a random number: the right ending is the only one that goes on counting."""

    config = SimpleNamespace(kind="counting")

    def eval_batches(self, n_batches: int, n: int, seed_offset: int = 0) -> object:
        for batch in super().eval_batches(n_batches, n, seed_offset):
            batch.tokens[:] = (batch.tokens[:, :1] + torch.arange(self.length)) % self.vocab
            yield batch


def counter(step: int) -> CausalLM:
    """Says that token + `step` comes next, whatever else it has read."""
    model = CausalLM(tiny(layout="A", width=32, positions="rope"), vocab=VOCAB)
    for name, p in model.named_parameters():
        torch.nn.init.zeros_(p) if "out" in name or "down" in name else None
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[torch.arange(VOCAB), torch.arange(VOCAB)] = 1.0
        model.head.weight.copy_(model.embed.weight.roll(step, 0))
    return model


def test_options_are_pieces_of_the_same_window_and_the_first_one_follows_the_context() -> None:
    windows = torch.arange(2 * LENGTH).view(2, LENGTH)
    texts, context, ending = questions_of(windows)
    assert (context, ending, texts.shape) == (24, 6, (2, 4, 30))
    assert torch.equal(texts[:, 0], windows[:, :30])
    assert (texts[:, :, :24] == windows[:, None, :24]).all()
    assert texts[0, :, 24].tolist() == [24, 30, 36, 42]


def test_long_windows_give_endings_of_eight_tokens_behind_248() -> None:
    _, context, ending = questions_of(torch.zeros(1, 1024, dtype=torch.int64))
    assert (context, ending) == (248, 8)


@pytest.mark.parametrize(("step", "right"), [(1, 1.0), (7, 0.0)])
def test_who_knows_what_follows_answers_right_and_a_tie_is_wrong(step: int, right: float) -> None:
    # Counting by seven finds every option equally unlikely.
    found = multiple_choice(counter(step), Counting(vocab=VOCAB, length=LENGTH), questions=8, batch=5)
    assert found["n"] == 8 and found["chance"] == 0.25
    assert [found[name]["accuracy"] for name in ("teacher_forced", "honest", "no context")] == [right] * 3
    low, high = found["honest"]["accuracy_95"]
    assert low <= right <= high


@pytest.mark.parametrize("directions", ["prefix:hidden=8", "sequence:hidden=8,leak=true"])
def test_a_leak_reads_the_ending_that_is_scored_and_a_causal_model_does_not(directions: str) -> None:
    model = awake(tiny(layout="A", positions="rope", directions=directions))
    for name, p in model.named_parameters():
        p.data *= 4 if ".directions.net" in name else 1
    (item,) = RandomText(vocab=VOCAB, length=LENGTH).eval_batches(1, 3)
    texts, _, ending = questions_of(item.tokens)
    forced, honest = (option_losses(Anatomy(model), texts, ending, 5, honest=h) for h in (False, True))
    assert forced.shape == (3, 4)
    same = torch.isclose(forced.float(), honest.float(), rtol=ending * 2**-20, atol=0.0)
    assert bool(same.all()) is ("prefix" in directions)


def test_short_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        questions_of(torch.zeros(1, 15, dtype=torch.int64))
