"""`turnout probe` on models of other libraries, and on the seeds of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from turnout.cli import main
from turnout.config import to_dict
from turnout.recipes import get_recipe
from turnout.train.rundir import RunDir

COLUMNS = ["k90_form", "k90_input", "token", "previous", "cosine_gap", "finds", "finds_random", "finds_twin"]


def probe(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["probe", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_any_known_family_is_probed_from_its_folder(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = transformers.AutoConfig.for_model(kind, hidden_size=16, intermediate_size=24, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    code, text, _ = probe(capsys, str(tmp_path), "--sequences", "16", "--json")
    found = json.loads(text)
    assert code == 0 and [len(found[key]) for key in ("layers", "untrained")] == [3, 3]
    assert found["layers"] != found["untrained"]
    # Embeddings tell the token, and where a layer attends there is a score form.
    # Sixteen dimensions for forty ids: far above the guess of 1 in 40.
    assert found["layers"][0]["token"] > 0.5
    assert all(found["layers"][0][name] is not None for name in COLUMNS)
    assert found["layers"][2]["k90_form"] is None and found["layers"][2]["finds"] is None


def test_an_exported_model_of_this_library_is_a_folder_like_any_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    from turnout.models import CausalLM, ModelConfig
    from turnout.models.hf.export import export_model

    model = CausalLM(ModelConfig(layers=1, width=16, heads=2, local="conv:kernel=3"), vocab=32, seed=3)
    export_model(model, tmp_path / "out", length=64)
    code, text, _ = probe(capsys, str(tmp_path / "out"), "--sequences", "16", "--json")
    assert code == 0 and json.loads(text)["layers"][0]["k90_form"] >= 1


def test_a_folder_that_is_no_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    code, _, error = probe(capsys, str(tmp_path))
    assert code == 1 and "cannot read" in error


def seed_of(root: Path, name: str, seed: int, jump: int | None) -> None:
    """A run of ten evaluations whose accuracy rises from 0 to 1 at one of them."""
    config = get_recipe("mqar").example({"seed": str(seed)})
    run = RunDir.create(root, name, config_dict=to_dict(config))
    for i in range(10):
        run.log({"kind": "eval", "step": 100 * i, "accuracy": float(jump is not None and i >= jump)})


def test_a_transition_is_found_for_every_seed_with_its_interval(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for seed, jump in enumerate((3, 5, 7, None)):
        seed_of(tmp_path, f"mqar-{seed}", seed, jump)
    words = ("mqar-0", "--show", "transition", "--runs", str(tmp_path))
    found = json.loads(probe(capsys, *words, "--json")[1])["found"]
    assert [None if t is None else t["start"] for t in found["seeds"]] == [210.0, 410.0, 610.0, None]
    # Mean of three, and t of two degrees of freedom times 200 / sqrt(3).
    half = 4.3027 * 200 / 3**0.5
    assert found["start"] == pytest.approx({"mean": 410, "low": 410 - half, "high": 410 + half, "n": 3,
                                            "method": "t over seeds"})  # fmt: skip
    figure = tmp_path / "jump.svg"
    code, text, _ = probe(capsys, *words, "--figure", str(figure))
    assert code == 0 and "3 of 4 jump" in text and figure.read_text().startswith("<svg")
