from __future__ import annotations

import torch

from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.probe.subspace import activations, linear_probe, probe_layers, score_form
from turnout.tasks import MQARConfig

CONFIG = ModelConfig(layers=2, width=64, heads=2, layout="LA", local="conv:kernel=4", positions="rope")
TASK = MQARConfig(length=32, pairs=4, vocab=64).build(0)


def test_a_linear_probe_reads_what_is_linear_and_nothing_from_noise() -> None:
    source = torch.Generator().manual_seed(0)
    label = torch.randint(8, (4000,), generator=source)
    codes = torch.randn(8, 16, generator=source)
    assert linear_probe(codes[label], label) == 1.0
    # 2,000 guesses among 8: five standard errors above 1/8.
    assert linear_probe(torch.randn(4000, 16, generator=source), label) < 0.125 + 5 * (0.11 / 2000) ** 0.5


def test_the_convolution_writes_the_previous_token_where_the_embedding_has_none() -> None:
    model = CausalLM(CONFIG, vocab=64, seed=0)
    layers = probe_layers(model, TASK, sequences=200)
    assert [layer.layer for layer in layers] == [0, 1, 2]
    assert layers[0].token > 0.5
    assert layers[1].previous > layers[0].previous + 0.05


def test_forms_exist_where_a_layer_attends() -> None:
    model = CausalLM(CONFIG, vocab=64, seed=0)
    assert score_form(model, 0) is None and score_form(model, 2) is None
    form = score_form(model, 1)
    assert form is not None and form.shape == (64, 64)
    track = model.blocks[1].mixer.attention
    x = torch.randn(5, 64)
    q = torch.nn.functional.linear(x, track.q.weight).unflatten(-1, (2, 32))
    k = torch.nn.functional.linear(x, track.kv.weight).unflatten(-1, (2, 2, 32))[:, 0]
    scores = torch.einsum("ihd,jhd->ij", q, k) / 2
    eps = torch.finfo(torch.float32).eps
    assert (x @ form @ x.T - scores).abs().max() < 64 * 64 * eps * float(scores.detach().abs().max())


def test_probing_leaves_the_model_as_it_was() -> None:
    model = CausalLM(CONFIG, vocab=64, seed=0)
    batch = TASK.train_batch(2)
    before = model(batch.tokens).logits
    assert len(activations(model, batch)) == 3
    assert torch.equal(model(batch.tokens).logits, before)
    assert not any(block._forward_pre_hooks for block in model.blocks)
