"""Taps show what the model computes and replace it, under TransformerLens's names; ours and Hugging Face's models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from routing_laws import VOCAB, assert_same, awake, sequences, terms_of, tiny
from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models import CausalLM
from turnout.probe.taps import Hook, Taps, run_with_cache, run_with_hooks
from turnout.routers.mode import DENSE


def directed(**changes: Any) -> CausalLM:
    return awake(tiny(**{"layout": "A", "positions": "rope", "directions": "token:hidden=8,k=2", **changes}))


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=4, attn_implementation="eager"
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).double().eval()


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).double().eval()


ANY = [directed, lambda: directed(layout="R"), gpt2, llama]


@pytest.mark.parametrize("build", ANY)
def test_the_residual_stream_is_the_sum_of_what_was_added(build: Callable[[], nn.Module]) -> None:
    tokens, _ = sequences()
    with torch.random.fork_rng(devices=[]):
        logits, seen = run_with_cache(build(), tokens)
    x = seen["blocks.0.hook_resid_pre"]
    for i in range(2):
        assert_same(seen[f"blocks.{i}.hook_resid_mid"], x + seen[f"blocks.{i}.hook_attn_out"], terms=4)
        x = seen[f"blocks.{i}.hook_resid_mid"] + seen[f"blocks.{i}.hook_mlp_out"]
        assert_same(seen[f"blocks.{i}.hook_resid_post"], x, terms=4)
    assert logits.shape == (*tokens.shape, VOCAB)
    assert {"hook_embed", "ln_final.hook_normalized", "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"} <= seen.keys()
    assert seen["blocks.0.attn.hook_z"].shape == (*tokens.shape, 4, 4)


@pytest.mark.parametrize("build", ANY)
def test_looking_changes_nothing_and_no_hook_is_left(build: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        model = build()
    tokens, _ = sequences()
    taps = Taps(model)
    plain = taps.run(tokens).logits
    looked = taps.run(tokens, keep=[n for n in taps.names if not n.endswith("hook_o")]).logits
    same = taps.run(tokens, edits={name: lambda v, hook: v for name in taps.names if not name.endswith("hook_o")})
    assert torch.equal(plain, looked) and torch.equal(plain, same.logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("build", ANY)
def test_an_edit_reaches_what_comes_after_and_nothing_before(build: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        taps = Taps(build())
    tokens, _ = sequences()
    seen: list[Hook] = []

    def zero_head(z: Tensor, hook: Hook) -> Tensor:
        seen.append(hook)
        z = z.clone()
        z[:, :, 1] = 0
        return z

    keep = ["blocks.0.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.attn.hook_z"]
    plain, edited = taps.run(tokens, keep=keep), taps.run(tokens, keep=keep, edits={keep[2]: zero_head})
    assert seen == [Hook(keep[2], 1)]
    assert torch.equal(plain[keep[0]], edited[keep[0]]) and not torch.equal(plain[keep[1]], edited[keep[1]])
    assert not bool(edited[keep[2]][:, :, 1].any()) and torch.equal(plain[keep[2]][:, :, 2], edited[keep[2]][:, :, 2])
    assert not torch.equal(plain.logits, edited.logits)
    assert torch.equal(run_with_hooks(taps.anatomy.model, tokens, [(keep[2], zero_head)]), edited.logits)


@pytest.mark.parametrize("layout", ["A", "R"])
def test_the_heads_before_and_after_the_cut_differ_by_the_cut(layout: str) -> None:
    model = directed(layout=layout)
    tokens, _ = sequences()
    names = [f"blocks.1.attn.{tap}" for tap in ("hook_o", "hook_r", "hook_z")]
    seen = Taps(model).run(tokens, keep=names)
    o, r, z = (seen[name] for name in names)
    d = model.blocks[1].mixer.attention.directions.unit()
    want = o - torch.einsum("bthk,hkd->bthd", r * torch.einsum("bthd,hkd->bthk", o, d), d)
    assert_same(z, want.detach(), terms=12)
    with torch.no_grad():
        assert_same(seen.logits, model(tokens, mode=DENSE).logits, terms=terms_of(model.config))


def test_taking_the_directions_out_of_the_operator_is_undone() -> None:
    model = directed()
    tokens, _ = sequences()
    with pytest.raises(ZeroDivisionError):
        Taps(model).run(tokens, edits={"blocks.0.attn.hook_o": lambda v, hook: 1 / 0})
    assert not any(block.mixer.attention.split for block in model.blocks)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.2.attn.hook_z", r"layer 2 does not exist; this model has layers 0\.\.1"),
        ("blocks.1.attn.hook_zz", r"unknown tap .*did you mean 'blocks\.1\.attn\.hook_z'"),
        ("hook_embd", r"did you mean 'hook_embed'"),
    ],
)
def test_a_missing_place_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Taps(directed()).run(sequences()[0], keep=[name])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v, hook: v[:, :1], r"returned \(3, 1, 4, 2\); expected \(3, 13, 4, 2\)"),
        (lambda v, hook: v * float("nan"), "returned NaN; expected finite"),
    ],
)
def test_an_edit_of_another_shape_or_a_nan_is_refused(edit: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Taps(directed()).run(sequences()[0], edits={"blocks.0.attn.hook_r": edit})


def test_a_prompt_longer_than_a_hugging_face_context_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        taps = Taps(gpt2())
    with pytest.raises(ShapeError, match="prompt of 17 tokens; the context is 16"):
        taps.run(torch.zeros(1, 17, dtype=torch.int64))


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Linear has none of the module paths"):
        Taps(nn.Linear(2, 2))
