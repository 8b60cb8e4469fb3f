"""`turnout export` and `turnout generate` on a run of a few steps, with and without `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from turnout.cli import main
from turnout.errors import CheckpointError
from turnout.recipes import get_recipe
from turnout.train.loop import load_model, train
from turnout.train.pretrained import load_pretrained
from turnout.train.rundir import RunDir

SETTINGS = {
    "model.layers": 2, "model.width": 16, "model.heads": 2, "task.length": 32, "schedule.steps": 2, "optim.batch": 2,
    "loop.eval_sequences": 2, "loop.final_sequences": 2, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    root = tmp_path_factory.mktemp("generate")
    (root / "text.txt").write_text("\n\n".join(f"Line {i}: grüße to you." for i in range(60)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNOUT_CACHE", str(root / "cache"))
        config = get_recipe("text_cpu").config({"task.path": str(root / "text.txt"), **SETTINGS})
        folder, _ = train(config, root=root / "runs", name="tiny")
        yield folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_and_its_export_generate_the_same_text(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tmp_path / "out")
    assert main(["export", str(run.path), folder, "--shard-size", "4KB"]) == 0
    capsys.readouterr()
    words = ("--prompt", "Grüß", "--tokens", "9", "--whole")
    own = said(capsys, "generate", str(run.path), *words, "--greedy")
    assert said(capsys, "generate", folder, *words, "--greedy")["sequences"] == own["sequences"]
    assert said(capsys, "generate", folder, *words, "--greedy", "--uncached")["sequences"] == own["sequences"]
    (item,) = own["sequences"]
    assert len(item["tokens"]) == 9 and 0 <= item["usage"] <= 1

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = tokenizer(["Grüß"], return_tensors="pt")
    assert encoded["input_ids"].tolist() == [list("Grüß".encode())]
    made = model.generate(**encoded, max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert made[0, 6:].tolist() == item["tokens"]
    assert tokenizer.decode(encoded["input_ids"][0]) == "Grüß"
    ours, _, _ = load_model(run)
    assert torch.equal(ours.embed.weight, model.model.embed.weight)


def test_one_sequence_is_streamed_and_several_are_listed(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run.path), "--prompt", "Line", "--tokens", "5", "--whole", "--top-k", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Line") and "5 tokens in" in out
    data = said(capsys, "generate", str(run.path), "--prompt", "Line", "--tokens", "5", "--whole", "--samples", "3")
    assert [item["sample"] for item in data["sequences"]] == [0, 1, 2]
    assert len({tuple(item["tokens"]) for item in data["sequences"]}) > 1
    again = said(capsys, "generate", str(run.path), "--prompt", "Line", "--tokens", "5", "--whole", "--samples", "3")
    assert again["sequences"] == data["sequences"]


def test_prompts_that_cannot_be_continued_and_broken_exports_are_refused(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    for words, text in (
        (("--prompt", "x" * 30, "--tokens", "9"), "trained on 32"),
        (("--prompt", ""), "prompt is empty"),
        (("--prompt", "a", "--file", "b"), "keep one"),
        (("--prompt", "a", "--temperature", "0"), "--greedy"),
    ):
        assert main(["generate", str(run.path), *words]) in (1, 2)
        assert text in capsys.readouterr().err
    folder = tmp_path / "out"
    assert main(["export", str(run.path), str(folder), "--shard-size", "4KB"]) == 0
    assert main(["export", str(run.path), str(folder)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"].popitem()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["generate", str(folder), "--prompt", "a", "--tokens", "2"]) == 1
    assert "do not belong together" in capsys.readouterr().err
    (folder / "tokenizer.json").unlink()
    assert main(["generate", str(folder), "--prompt", "a", "--tokens", "2"]) == 1
    assert "no tokenizer.json" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    config["model"]["width"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="of another shape"):
        load_pretrained(folder)
    min(folder.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of"):
        load_pretrained(folder)
