"""Attribution adds up to the logit, the lens ends at the model, patching everything restores the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from routing_laws import VOCAB, assert_same, sequences, terms_of, tiny
from turnout.errors import ShapeError, UnsupportedError
from turnout.models import CausalLM
from turnout.probe.edits import Unit, edits_of
from turnout.probe.heads import offset_score, patterns, strongest
from turnout.probe.lens import attribute, logit_lens, patch
from turnout.probe.taps import Taps

from .test_taps import directed, gpt2, llama

TOKENS, _ = sequences()
TARGETS = torch.tensor([3, 7, 0])
MODELS: list[Callable[[], nn.Module]] = [
    directed,
    lambda: directed(layout="R"),
    lambda: directed(form="llama", output_gate="element"),
    lambda: directed(directions="none", layout="LA"),
    gpt2,
    llama,
]


def taps_of(build: Callable[[], nn.Module]) -> Taps:
    with torch.random.fork_rng(devices=[]):
        return Taps(build())


@pytest.mark.parametrize("build", MODELS)
def test_contributions_sum_to_the_logit(build: Callable[[], nn.Module]) -> None:
    found = attribute(taps_of(build), TOKENS, TARGETS)
    parts = {name: part for name, part in found.summary().items() if name != "total"}
    size = max(map(abs, parts.values()))
    # Logits are float32 where the model's answer is read.
    assert sum(parts.values()) == pytest.approx(found.total, abs=64 * size * torch.finfo(torch.float32).eps)


def test_the_delta_is_what_the_directions_remove_and_zero_without_them() -> None:
    with_r, without = attribute(taps_of(directed), TOKENS, TARGETS), attribute(taps_of(MODELS[3]), TOKENS, TARGETS)
    assert bool(with_r.deltas.abs().min() > 0) and not bool(without.deltas.any())
    taps = taps_of(directed)
    off = edits_of(taps, Unit("r"), "zero")
    with taps.hooked({}, [], off):
        assert not bool(attribute(taps, TOKENS, TARGETS).deltas.abs().max() > 1e-12)


def test_the_lens_ends_at_the_model_itself() -> None:
    for build in (directed, gpt2):
        taps = taps_of(build)
        rows = logit_lens(taps, TOKENS[:, :-1], TOKENS[:, 1:])
        logits = taps.run(TOKENS[:, :-1]).logits.float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
        assert len(rows) == 3 and rows[-1]["agreement"] == 1.0
        assert rows[-1]["loss"] == pytest.approx(float(loss)) != rows[0]["loss"]


def test_patching_the_last_stream_restores_the_answer_and_the_changed_token_is_where_it_starts() -> None:
    taps = taps_of(directed)
    corrupt = TOKENS.clone()
    corrupt[:, 5] = (corrupt[:, 5] + 1) % VOCAB
    effect = patch(taps, TOKENS, corrupt, TARGETS, (TARGETS + 1) % VOCAB, "hook_resid_post")
    assert effect.shape == (2, 13)
    assert float(effect[-1, -1]) == pytest.approx(1.0)
    assert not bool(effect[:, :5].any())
    first = patch(taps, TOKENS, corrupt, TARGETS, (TARGETS + 1) % VOCAB, "hook_resid_pre")
    assert float(first[0, 5]) == pytest.approx(1.0)


def test_patching_what_is_not_there_or_does_not_differ_is_refused() -> None:
    taps = taps_of(directed)
    with pytest.raises(UnsupportedError, match=r"no layer .* tap 'hook_x'"):
        patch(taps, TOKENS, TOKENS.roll(1, 0), TARGETS, TARGETS + 1, "hook_x")
    with pytest.raises(UnsupportedError, match="same answer"):
        patch(taps, TOKENS, TOKENS, TARGETS, TARGETS + 1, "hook_resid_pre")
    with pytest.raises(ShapeError, match="expected one shape"):
        patch(taps, TOKENS, TOKENS[:, 1:], TARGETS, TARGETS + 1, "hook_resid_pre")
    with pytest.raises(ShapeError, match="expected one a sequence"):
        attribute(taps, TOKENS, TARGETS[:2])


@pytest.mark.parametrize("positions", ["none", "rope"])
def test_patterns_are_the_weights_that_the_heads_use(positions: str) -> None:
    taps = Taps(directed(positions=positions, directions="none"))
    model = taps.anatomy.model
    assert isinstance(model, CausalLM)
    found = patterns(taps, TOKENS)
    seen = taps.run(TOKENS, keep=["blocks.1.attn.hook_z", "blocks.1.ln1.hook_normalized"])
    _, v = model.blocks[1].mixer.attention.keys_values(seen["blocks.1.ln1.hook_normalized"], None)
    want = torch.einsum("bhts,bshd->bthd", found[1], v.repeat_interleave(2, 2))
    assert_same(seen["blocks.1.attn.hook_z"], want.detach(), terms=terms_of(tiny()))


def test_patterns_of_a_hugging_face_model_need_an_implementation_that_returns_them() -> None:
    found = patterns(taps_of(gpt2), TOKENS)
    assert found[0].shape == (3, 4, 13, 13)
    assert float(found[1].sum(-1).min()) == pytest.approx(1.0)


def test_heads_are_scored_by_where_they_look() -> None:
    back = torch.zeros(1, 2, 6, 6)
    back[:, 1, torch.arange(2, 6), torch.arange(4)] = 1.0
    assert offset_score(back, 2).tolist() == [0.0, 1.0]
    assert strongest({0: torch.tensor([0.1, 0.2]), 3: torch.tensor([0.9, 0.0])}, 2) == [(3, 0), (0, 1)]
