"""Other libraries' language models: read from a folder, frozen in front of a content router, refused where damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from turnout.errors import CheckpointError, ConfigError, DataError
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.models.hf.export import export_model
from turnout.models.hf.foreign import FrozenStates, hidden_states, load_foreign
from turnout.models.testbed import TestBed
from turnout.models.testbed_config import TestBedConfig
from turnout.probe.subspace import activations
from turnout.tasks import RetrievalConfig
from turnout.train.stacked import StackedTrainer, train_together
from turnout.train.stacked_config import BedRunConfig

VOCAB, LENGTH = 40, 32


def folder_of(path: Path, kind: str) -> str:
    """A random model of two layers and width 16, saved as transformers saves it."""
    # Not the seed of a twin.
    torch.manual_seed(1)
    shared = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = {
        "gpt2": transformers.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        "llama": transformers.LlamaConfig(hidden_size=16, intermediate_size=24, num_key_value_heads=1, **shared),
        "gpt_neox": transformers.GPTNeoXConfig(hidden_size=16, intermediate_size=24, **shared),
    }[kind]
    where = path / kind
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(where)
    return str(where)


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(tmp_path_factory.mktemp("foreign"), request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(tmp_path_factory.mktemp("foreign"), "gpt2")


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(0))


def bed_run(model: str, **changes: object) -> BedRunConfig:
    bed = TestBedConfig(flow="attention", width=8, heads=2, frozen=model, positions="none")
    base = BedRunConfig(
        task=RetrievalConfig(length=LENGTH, vocab=VOCAB, min_distance=12, distractors=0), model=bed, lrs=(1e-3, 3e-3),
        steps=3, batch=4, train_sequences=16, test_sequences=8, evaluations=1,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_an_exported_model_of_this_library_gives_the_states_that_its_probes_read(tmp_path: Path) -> None:
    own = CausalLM(ModelConfig(layers=2, width=16, heads=2, layout="A", positions="rope"), vocab=VOCAB, seed=1).eval()
    folder = export_model(own, tmp_path / "own", length=LENGTH)
    task = RetrievalConfig(length=LENGTH, vocab=VOCAB, min_distance=12, distractors=0).build(0)
    batch = next(iter(task.eval_batches(1, 2)))
    found = hidden_states(load_foreign(folder), batch.tokens)
    for state, wanted in zip(found, activations(own, batch), strict=True):
        assert torch.equal(state, wanted)
    (record,) = train_together([bed_run(str(folder))])
    assert len(record["runs"]) == 2


def test_states_are_those_of_the_model_to_the_bit(folder: str) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokens(2, 9)
    with torch.no_grad():
        wanted = theirs(ids, output_hidden_states=True).hidden_states
    found = hidden_states(load_foreign(folder), ids)
    assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    for layer in (0, -1):
        frozen = FrozenStates(folder, 8, vocab=VOCAB, layer=layer)
        assert torch.equal(frozen(ids), frozen.map(wanted[layer]))


def test_stacked_runs_read_what_each_run_reads_alone(gpt2: str) -> None:
    configs = [bed_run(gpt2, seed=seed) for seed in (0, 1)]
    trainer = StackedTrainer(configs)
    batch = trainer.held_out.batch(torch.arange(3).expand(2, -1), 2)
    score, _ = trainer._forward(trainer.theta, batch[0], batch[1])
    for row, config in enumerate([configs[0], configs[0], configs[1], configs[1]]):
        bed = TestBed(config.model, vocab=VOCAB, length=LENGTH, seed=config.seed)
        alone, _ = bed(batch[0][row], batch[1][row])
        finite = alone.isfinite()
        # Sums of at most 64 products in every layer of bed and model.
        limit = 8 * 64 * torch.finfo(torch.float32).eps * float(alone[finite].detach().abs().max())
        assert (score[row] - alone)[finite].detach().abs().max() <= limit


def test_the_bridge_learns_and_the_frozen_model_does_not(gpt2: str) -> None:
    trainer = StackedTrainer([bed_run(gpt2)])
    assert trainer.base.frozen is not None
    frozen = trainer.base.frozen._model[0]
    before = [p.clone() for p in frozen.parameters()]
    start = trainer.theta.detach().clone()
    names = set(trainer.names)
    assert {"frozen.map.weight", "flow.blocks.0.mix.qkv.weight"} <= names
    assert not any("transformer" in name for name in names)
    record = trainer.train()[0]
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))
    assert not torch.equal(start, trainer.theta.detach()) and len(record["runs"]) == 2


def test_the_twin_needs_no_weights_and_is_another_model(folder: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    ids = tokens(1, 5)
    twin = hidden_states(load_foreign(tmp_path, twin=True), ids)[-1]
    assert twin.shape == (1, 5, 16) and not torch.equal(twin, hidden_states(load_foreign(folder), ids)[-1])
    assert torch.equal(twin, hidden_states(load_foreign(tmp_path, twin=True), ids)[-1])
    run = bed_run(folder)
    assert train_together([replace(run, steps=1, model=replace(run.model, frozen_twin=True))])[0]["n_eval"] == 8


def test_what_cannot_be_read_is_refused_with_what_to_do(gpt2: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json; expected a local folder"):
        load_foreign(tmp_path)
    config = (Path(gpt2) / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    # Weights as a pickle only: never loaded.
    torch.save(transformers.AutoModelForCausalLM.from_pretrained(gpt2).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises((DataError, CheckpointError)):
        load_foreign(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"model_type": "gpt2"', '"model_type": "gpt_two"'))
    with pytest.raises(DataError, match="cannot read"):
        load_foreign(tmp_path, twin=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"vocab": VOCAB + 1}, "knows 40 token ids; the task uses 41"), ({"layer": 3}, r"layer=3 of .*expected 0")],
)
def test_ids_and_layers_that_do_not_exist_are_refused(gpt2: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrozenStates(gpt2, 8, **{"vocab": VOCAB, **options})


def test_settings_of_a_frozen_model_need_one() -> None:
    with pytest.raises(ConfigError, match="set frozen to its folder"):
        TestBedConfig(frozen_layer=2)
