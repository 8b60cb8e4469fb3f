"""The model behind the interface of `transformers`: its laws, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModelForCausalLM

from turnout.errors import CheckpointError, ConfigError, ShapeError, UnsupportedError
from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.models.hf import TurnoutCache, TurnoutConfig, TurnoutForCausalLM

EPS = torch.finfo(torch.float32).eps
# The router starts with most gates open; noise around 0 makes half of them differ from token to token.
MIXED = RoutingConfig(router="linear:bias=0.0,std=0.5")
SMALL = ModelConfig(
    layers=2, width=32, heads=2, local="conv:kernel=3", positions="rope", form="llama", routing=MIXED
)  # fmt: skip


def build(config: ModelConfig = SMALL, **fields: object) -> TurnoutForCausalLM:
    fields = {"vocab_size": 61, "pad_token_id": 0, **fields}
    return TurnoutForCausalLM(TurnoutConfig.of(config, **fields)).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, terms: int) -> None:
    """Equal up to the rounding of sums of `terms` products, compounded over the layers."""
    assert float((a - b).detach().abs().max()) <= 8 * EPS * terms**0.5 * max(1.0, float(b.detach().abs().max()))


def greedy(model: TurnoutForCausalLM, ids: torch.Tensor, new: int = 6, **options: object) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=new, do_sample=False, **options)


def test_the_default_config_is_a_small_working_model() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("turnout"))
    assert isinstance(model, TurnoutForCausalLM)
    assert model(tokens(1, 5)).logits.shape == (1, 5, 256)
    assert AutoConfig.for_model("turnout", layers=3).num_hidden_layers == 3


def test_logits_are_those_of_the_library_to_the_bit() -> None:
    model = build()
    plain = CausalLM(SMALL, vocab=61, seed=0).eval()
    with torch.no_grad():
        assert torch.equal(model(tokens(2, 9)).logits, plain(tokens(2, 9)).logits)


def test_a_fresh_process_loads_the_same_models_to_the_bit(tmp_path: Path) -> None:
    expected = []
    for tie in (False, True):
        model, folder = build(replace(SMALL, tie=tie)), tmp_path / str(int(tie))
        model.save_pretrained(folder, max_shard_size="8KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        with torch.no_grad():
            expected.append(model(tokens(2, 9)).logits.numpy().tobytes().hex())
    script = (
        "import sys, torch, turnout.models.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        "ids = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(0))\n"
        "for tie in (0, 1):\n"
        "    model = AutoModelForCausalLM.from_pretrained(f'{sys.argv[1]}/{tie}')\n"
        "    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == bool(tie)\n"
        "    print(model(ids).logits.detach().numpy().tobytes().hex())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


@pytest.mark.parametrize("local", ["conv:kernel=3", "window:size=4"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_logits_nor_routes(side: str, local: str) -> None:
    model = build(replace(SMALL, local=local))
    lengths, width = (3, 7, 5), 7
    ids, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for b, n in enumerate(lengths):
        where = slice(width - n, width) if side == "left" else slice(0, n)
        ids[b, where], mask[b, where] = tokens(n, seed=b), 1
    for use_cache in (False, True):
        with torch.no_grad():
            padded = model(ids, attention_mask=mask, use_cache=use_cache, output_routes=True)
        for b, n in enumerate(lengths):
            real = mask[b].bool()
            with torch.no_grad():
                alone = model(tokens(n, seed=b)[None], output_routes=True)
            close(padded.logits[b, real], alone.logits[0], 4 * SMALL.width)
            for route, single in zip(padded.routes, alone.routes, strict=True):
                assert torch.equal(route.taken[b, real], single.taken[0])
                assert not route.taken[b, ~real].any()


def test_hidden_states_are_what_passes_between_the_blocks_in_the_places_of_their_tokens() -> None:
    model = build()
    ids, mask = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.int64)
    for b, n in enumerate((4, 7)):
        ids[b, 7 - n :], mask[b, 7 - n :] = tokens(n, seed=b), 1
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        for b, n in enumerate((4, 7)):
            alone = model(tokens(n, seed=b)[None], output_hidden_states=True)
            assert len(alone.hidden_states) == SMALL.layers + 1
            assert torch.equal(model.model.head(alone.hidden_states[-1]), alone.logits)
            for whole, single in zip(padded.hidden_states, alone.hidden_states, strict=True):
                close(whole[b, 7 - n :], single[0], 4 * SMALL.width)
        assert model(ids).hidden_states is None
        with pytest.raises(UnsupportedError, match="use_cache=False"):
            model(ids, attention_mask=mask, output_hidden_states=True)
        with pytest.raises(UnsupportedError, match="output_routes=True"):
            model(ids, output_attentions=True)


def test_a_padded_batch_generates_what_each_prompt_generates_alone() -> None:
    model = build()
    ids, mask = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.int64)
    for b, n in enumerate((3, 7, 5)):
        ids[b, 7 - n :], mask[b, 7 - n :] = tokens(n, seed=b), 1
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        together = greedy(model, ids, attention_mask=mask, **options)
        for b, n in enumerate((3, 7, 5)):
            assert torch.equal(together[b, 7:], greedy(model, tokens(n, seed=b)[None])[0, n:])


def test_patterns_and_direction_routers_are_cached_too() -> None:
    model = build(replace(SMALL, pattern="forget", directions="token", routing=replace(MIXED, router="ema")))
    ids, mask = torch.zeros(2, 70, dtype=torch.int64), torch.zeros(2, 70, dtype=torch.int64)
    for b, n in enumerate((70, 65)):
        ids[b, 70 - n :], mask[b, 70 - n :] = tokens(n, seed=b), 1
    expected = greedy(model, ids, attention_mask=mask, use_cache=False)
    assert torch.equal(greedy(model, ids, attention_mask=mask), expected)
    assert torch.equal(greedy(model, ids[:1], cache_implementation="static"), expected[:1])


@pytest.mark.parametrize("layout", ["R", "AL"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_every_cache_generates_what_no_cache_generates(layout: str, options: dict[str, int]) -> None:
    model = build(replace(SMALL, layout=layout, routing=replace(MIXED, router="ema")))
    expected = greedy(model, tokens(2, 5), use_cache=False, **options)
    assert torch.equal(greedy(model, tokens(2, 5), **options), expected)
    assert torch.equal(greedy(model, tokens(2, 5), cache_implementation="static", **options), expected)


def test_sampling_with_a_seed_is_the_same_with_and_without_a_cache() -> None:
    model = build()
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(
            model.generate(tokens(2, 5), max_new_tokens=8, do_sample=True, top_k=20, top_p=0.95, use_cache=use_cache)
        )
    assert torch.equal(*drawn)
    assert len(set(drawn[0][:, 5:].flatten().tolist())) > 2


def test_a_prompt_in_chunks_is_the_whole_prompt() -> None:
    model = build()
    expected = greedy(model, tokens(2, 11))
    assert torch.equal(greedy(model, tokens(2, 11), prefill_chunk_size=4), expected)
    cache = TurnoutCache()
    first = model.generate(tokens(2, 11), max_new_tokens=3, do_sample=False, past_key_values=cache)
    assert torch.equal(greedy(model, first, new=3, past_key_values=cache), expected)


def test_compiled_decode_steps_generate_the_same() -> None:
    model = build(replace(SMALL, layers=1))
    expected = greedy(model, tokens(2, 5), new=3)
    with torch.no_grad():
        cache = TurnoutCache(16)
        logits = model(tokens(2, 5), past_key_values=cache).logits
        assert cache.is_compileable
        step, made = torch.compile(model.forward, backend="eager"), []
        for _ in range(3):
            made.append(logits[:, -1].argmax(-1, keepdim=True))
            logits = step(made[-1], past_key_values=cache).logits
    assert torch.equal(torch.cat(made, 1), expected[:, 5:])
    assert cache.get_seq_length() == 8


def test_activation_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = build(replace(SMALL, layout="R", routing=RoutingConfig(router="threshold:usage=0.4")))
        model.train()
        if checkpointing:
            model.gradient_checkpointing = True
        for step in range(2):
            model.zero_grad()
            model(tokens(2, 9, seed=step), labels=tokens(2, 9, seed=step)).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        grads[-1] |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, grad in grads[0].items():
        assert (grad is None) == (grads[1][name] is None), name
        assert grad is None or torch.equal(grad, grads[1][name]), name


def test_the_loss_is_the_cross_entropy_of_the_next_token_and_the_price_of_open_gates() -> None:
    ids = tokens(2, 9)
    free, priced = build(), build(routing_cost=0.5)
    out = priced(ids, labels=ids, output_routes=True)
    plain = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    gates = torch.stack([route.gate for route in out.routes]).mean()
    close(free(ids, labels=ids).loss, plain, 61)
    close(out.loss, plain + 0.5 * gates, 61)


def test_parts_of_a_batch_add_up_to_its_loss_as_trainers_with_accumulation_ask() -> None:
    model = build(routing_cost=0.5)
    ids = tokens(4, 9)
    labels = torch.where(torch.arange(9) < 5, -100, ids)
    count = int((labels[:, 1:] != -100).sum())
    parts = [model(ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=count).loss for i in (0, 2)]
    close(parts[0] + parts[1], model(ids, labels=labels).loss, 4 * 61)


def test_resized_embeddings_know_the_new_tokens() -> None:
    model = build()
    before = model(tokens(1, 5)).logits
    model.resize_token_embeddings(70)
    assert model(torch.tensor([[1, 69]])).logits.shape[-1] == 70
    assert torch.equal(model(tokens(1, 5)).logits[..., :61], before)
    with pytest.raises(ShapeError, match="another tokenizer"):
        model(torch.tensor([[1, 70]]))


def test_embeddings_may_be_given_instead_of_tokens() -> None:
    model = build()
    with torch.no_grad():
        x = model.get_input_embeddings()(tokens(2, 5))
        assert torch.equal(model(inputs_embeds=x).logits, model(tokens(2, 5)).logits)
        kept = model(tokens(2, 5), logits_to_keep=1).logits
        close(kept, model(tokens(2, 5)).logits[:, -1:], 32)
    with pytest.raises(ShapeError, match="either input_ids or inputs_embeds"):
        model()


def test_a_missing_shard_and_a_foreign_checkpoint_are_errors(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "a", max_shard_size="8KB")
    shard = sorted((tmp_path / "a").glob("*.safetensors"))[1]
    shard.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=f"lacks 1 of .* files of weights .*{shard.name}"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    (tmp_path / "away").rename(shard)
    config = json.loads((tmp_path / "a/config.json").read_text())
    for change, said in (
        ({"width": 48}, "of another shape"),
        ({"layers": 3}, "missing"),
        ({"layers": 1}, "unexpected"),
    ):
        config["model"].update({"width": 32, "layers": 2, **change})
        (tmp_path / "a/config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=said):
            TurnoutForCausalLM.from_pretrained(tmp_path / "a")


def test_misuse_of_prompts_and_caches_is_refused() -> None:
    model = build(max_position_embeddings=8)
    with pytest.raises(ShapeError, match="another tokenizer"):
        greedy(model, torch.tensor([[1, 61]]))
    with pytest.warns(UserWarning, match="trained on 8"):
        greedy(model, tokens(1, 9), new=1)
    cache = TurnoutCache()
    greedy(model, tokens(1, 5), past_key_values=cache)
    for shorter_equal_longer in (3, 5, 12):
        with pytest.raises(ShapeError, match="another prompt"):
            greedy(model, tokens(1, shorter_equal_longer, seed=3), past_key_values=cache)
        filled_by_hand = TurnoutCache()
        with torch.no_grad():
            model(tokens(1, 5), past_key_values=filled_by_hand)
        with pytest.raises(ShapeError, match="another prompt"):
            greedy(model, tokens(1, shorter_equal_longer, seed=3), past_key_values=filled_by_hand)
    with pytest.raises(ShapeError, match="another tokenizer"):
        model(torch.tensor([[1, 61]]))
    with pytest.raises(ShapeError, match="holds 1 sequences, got 3"):
        model(tokens(3, 1), past_key_values=cache)
    with pytest.raises(ShapeError, match="between real tokens"):
        model(tokens(1, 3), attention_mask=torch.tensor([[1, 0, 1]]))
    with pytest.raises(ShapeError, match="without a real token"):
        model(tokens(2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]), use_cache=True)
    with pytest.raises(ConfigError, match="quantized"):
        greedy(model, tokens(1, 5), cache_implementation="quantized")
    with pytest.raises(UnsupportedError, match="cut back"):
        cache.crop(1)
    full = TurnoutCache(6)
    with torch.no_grad():
        model(tokens(1, 6), past_key_values=full)
        with pytest.raises(ShapeError, match="full"):
            model(tokens(1, 1), past_key_values=full)
    with pytest.raises(ConfigError, match="layers"):
        TurnoutConfig(model={"layrs": 2})
