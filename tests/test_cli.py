"""The command line as people meet it: called in this process, or as a process of its own where signals matter."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import turnout
from turnout.cli import VERBS, main
from turnout.train import checkpoint
from turnout.train.loop import Trainer, load_model
from turnout.train.rundir import RunDir

SMALL = [
    *("--device", "cpu", "--threads", "1", "--task.length", "8", "--optim.batch", "2", "--loop.savings", "false"),
    *("--model.layers", "1", "--model.width", "16", "--model.heads", "2", "--model.local", "conv:kernel=4"),
    *("--loop.eval_sequences", "4", "--loop.final_sequences", "8"),
]
# Prints more lines than a small pipe holds, so that it waits for its reader: a signal always finds it running.
JOINT = [
    *(*SMALL, "--schedule.kind", "joint", "--schedule.cost", "0.05", "--schedule.steps", "140"),
    *("--loop.log_every", "2", "--loop.eval_every", "2", "--loop.checkpoint_every", "10"),
]
QUICK = [*SMALL, "--schedule.kind", "joint", "--schedule.steps", "10", "--loop.log_every", "5"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNOUT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one finished run, `a`."""
    root = tmp_path_factory.mktemp("trained")
    assert main(["train", "recall", *QUICK, "--name", "a", "--runs", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Final weights of the recipe that the signal tests interrupt."""
    root = tmp_path_factory.mktemp("whole")
    assert main(["train", "recall", *JOINT, "--name", "whole", "--runs", str(root)]) == 0
    return weights(root / "whole")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run / "model.safetensors")[0]


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def environment() -> dict[str, str]:
    """The tests' own, in which a process finds this checkout from any folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(turnout.__file__).parents[1])}


def process(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "turnout", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "pipesize": 4096}
    return subprocess.Popen(command, env=environment(), **{**pipes, **options})


def wait_for(text: str, path: Path, running: subprocess.Popen[str]) -> None:
    while not (path.exists() and text in path.read_text()):
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)


def only_error(code: int, out: str, err: str) -> str:
    """The single line on stderr of a command that failed as it should."""
    assert code in (1, 2) and out == "" and err.startswith("turnout: error: ") and err.count("\n") == 1, (
        code,
        out,
        err,
    )
    return err.strip()


# Help


def test_help_is_there_in_an_instant_and_loads_neither_torch_nor_rich() -> None:
    code = (
        "import sys; from turnout.cli import main; "
        "codes = [main([*verb, '--help']) for verb in ([], ['train'], ['train', 'text'], ['eval'])]; "
        "print(codes, sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    best = 9.0
    for _ in range(3):
        began = time.perf_counter()
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - began)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] []"
    assert best < 1.5


def test_help_names_every_verb_and_a_missing_verb_is_a_usage_error(cli: Cli) -> None:
    code, out, err = cli("--help")
    assert code == 0 and err == "" and all(f"  {verb} " in out for verb in VERBS)
    assert cli() == (2, "", out)
    assert cli("--version")[1].startswith("turnout 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    code, out, err = cli(verb, "--help")
    assert code == 0 and out.startswith(f"usage: turnout {verb}") and err == ""


# Bad input: one line, the right exit code, nothing left behind


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("trian recall", 2, "unknown verb 'trian'; did you mean 'train'?"),
        ("train", 2, "turnout train needs RECIPE"),
        ("train recal", 2, "unknown recipe 'recal'; did you mean 'recall'?"),
        ("train recall --model.layer 4", 2, "unknown setting model.layer; did you mean 'model.layers'?"),
        ("train recall --layers 4", 2, "unknown option --layers; did you mean 'model.layers'?"),
        ("train recall --resum", 2, "unknown option --resum; did you mean 'resume'?"),
        ("train recall --model.layers four", 2, "model.layers='four' (str); expected an integer"),
        ("train recall --model.heads 3", 2, "expected heads to divide width"),
        ("train recall --model.routing.router liner", 2, "unknown query router 'liner'; did you mean 'linear'?"),
        ("train recall --model.routing.router expert_choice", 2, "is not causal"),
        ("train recall --model.routing.router random:q=1", 2, "has no option 'q'; choose one of: p"),
        ("train recall --task.length 2", 2, "recall length=2; expected at least 3"),
        ("train recall --task.kind txt --task.path a", 2, "unknown task.kind 'txt'; did you mean 'text'?"),
        ("train recall --device tpu", 2, "device='tpu'; expected auto, cpu or cuda"),
        ("train recall --name a/b", 2, "run name 'a/b' is not a folder name"),
        ("train recall --resume", 2, "no unfinished run of 'recall' with these settings in runs to resume"),
        ("train recall --resume --name x", 2, "no run 'x' to resume in runs"),
        ("train --resume --name x", 1, "no run 'x'"),
        ("train text", 2, "recipe 'text' needs task.path, which has no default; add --task.path VALUE"),
        ("train text --task.path nowhere.txt", 1, "nowhere.txt does not exist"),
        ("train text --task.path nowhere.txt --dry-run", 1, "nowhere.txt does not exist"),
        ("train text --task.path f --task.length 16 --schedule.kind curriculum", 2, "schedule.solve_at to none"),
        ("eval nothing", 1, "no run 'nothing': neither a folder nor a run in runs"),
        ("show recal", 2, "'recal' is neither a recipe nor a run in runs; did you mean 'recall'?"),
        ("list router", 2, "WHAT='router' is not a choice; did you mean 'routers'?"),
        ("report", 2, "turnout report needs RUN"),
        ("certify", 2, "turnout certify needs WHAT"),
        ("certify recall --length 1", 2, "certify length=1; expected >= 2"),
        ("reproduce RA99 --jobs 0", 2, "--jobs=0; expected >= 1"),
        ("reproduce --quick --seeds 2", 2, "leave out --quick or --seeds"),
        ("reproduce RA99", 2, "unknown claim 'RA99'; choose one of: "),
        ("reproduce RA1 --dry-run --device gpu", 2, "device='gpu'; expected auto, cpu or cuda"),
        ("claims RA99", 2, "unknown claim 'RA99'; choose one of: "),
        ("claims RA1 --write", 2, "leave the ids out"),
    ],
)
def test_bad_input_is_one_line_with_the_right_exit_code_and_leaves_nothing(
    cli: Cli, tmp_path: Path, command: str, code: int, message: str
) -> None:
    (tmp_path / "f").write_text("some text, too short for a window\n" * 40)
    before = sorted(tmp_path.rglob("*"))
    got, out, err = cli(*command.split())
    assert message in only_error(got, out, err) and got == code
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "runs"] == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\x00\xff\x01\xfe" * 200, "binary"), (b"a few words", "shorter than a window")],
)
def test_a_text_that_cannot_be_used_says_why(cli: Cli, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    got = cli("train", "text", "--task.path", tmp_path / "text.txt", "--device", "cpu")
    assert got[0] == 1 and message in got[2].splitlines()[-1] and "Traceback" not in got[2]


def test_debug_shows_the_traceback_before_the_line(cli: Cli) -> None:
    for words in (["--debug", "show", "recal"], ["show", "recal", "--debug"]):
        code, _, err = cli(*words)
        assert code == 2 and err.startswith("Traceback") and err.splitlines()[-1].startswith("turnout: error: ")


def test_an_unexpected_error_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import turnout.cli.verbs.show as show

    monkeypatch.setattr(show, "find_config", lambda *_: 1 / 0)
    code, _, err = cli("show", "recall")
    assert (code, err) == (1, "turnout: error: ZeroDivisionError: division by zero (unexpected; --debug shows where)\n")


# Looking without training


def test_a_dry_run_writes_nothing_and_counts(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("train", "recall", *SMALL, "--dry-run")
    assert code == 0 and "parameters" in out and "dry run, nothing written" in out
    code, out, _ = cli("train", "recall", *SMALL, "--dry-run", "--json")
    data = json.loads(out)
    assert code == 0 and data["config"]["model"]["width"] == 16 and data["flops_per_sequence"]["no gate open"] > 0
    text = tmp_path / "text.txt"
    text.write_text("words " * 4000)
    assert cli("train", "text", "--task.path", text, "--task.length", "16", "--dry-run")[0] == 0
    assert list(tmp_path.rglob("*")) == [text]


def test_show_prints_the_resolved_config_of_a_recipe(cli: Cli) -> None:
    code, out, _ = cli("show", "recall", "--model.layers", "3")
    lines = dict(line.split(" = ") for line in out.splitlines())
    assert code == 0 and lines["model.layers"] == "3" and lines["task.kind"] == "recall"
    config = json.loads(cli("show", "recall", "--model.layers=3", "--json")[1])
    assert config["model"]["layers"] == 3
    assert "task.path = <needed>" in cli("show", "text")[1]


def test_list_names_everything_with_a_line_each(cli: Cli, trained: Path) -> None:
    found = json.loads(cli("list", "--json", "--runs", trained)[1])
    kinds = {"recipes", "routers", "selectors", "directions", "flows", "locals", "patterns", "tasks", "runs"}
    assert found.keys() == kinds
    assert all(entry["name"] and entry["summary"] for entries in found.values() for entry in entries)
    assert {"recall", "text"} <= {entry["name"] for entry in found["recipes"]}
    assert "random:p=0.0625" in {entry["name"] for entry in found["routers"]}
    assert [entry["name"] for entry in found["runs"]] == ["a"]
    code, out, _ = cli("list", "tasks")
    kinds = ["recall", "recall_hard", "text", "mqar", "trailing_mqar", "retrieval"]
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["tasks", *kinds]
    assert cli("list", "runs")[1] == "no runs\n"


def test_claims_are_a_list_of_objects_with_every_key(cli: Cli) -> None:
    rows = json.loads(cli("claims", "--json")[1])
    keys = {"id", "source", "statement", "quoted", "measured", "n", "interval", "control", "verdict", "device"}
    assert rows and all(row.keys() >= keys | {"commit", "command"} for row in rows)
    code, out, _ = cli("claims")
    assert code == 0 and all(row["id"] in out for row in rows)
    assert len(cli("list", "claims")[1].splitlines()) == len(rows) + 1


# A run from start to end


def test_train_writes_a_run_that_the_other_verbs_read(cli: Cli, trained: Path) -> None:
    summary = json.loads((trained / "a" / "summary.json").read_text())
    code, out, _ = cli("show", "a", "--runs", trained)
    assert code == 0 and "recall, finished" in out and "turnout train recall" in out
    shown = json.loads(cli("show", trained / "a", "--json")[1])
    assert shown["finished"] and shown["summary"] == summary
    assert shown["manifest"]["command"].startswith("turnout train recall --device cpu")


def test_eval_without_options_repeats_the_final_evaluation(cli: Cli, trained: Path) -> None:
    summary = json.loads((trained / "a" / "summary.json").read_text())
    seen = json.loads(cli("eval", "a", "--runs", trained, "--device", "cpu", "--json")[1])
    assert {key: seen[key] for key in ("accuracy", "loss", "usage")} == {
        key: summary[key] for key in ("accuracy", "loss", "usage")
    }
    assert (seen["n"], seen["router"], seen["length"]) == (8, "linear", 8)


@pytest.mark.parametrize(("router", "usage"), [("never", 0.0), ("always", 1.0), ("periodic:period=4", 0.25)])
def test_eval_swaps_the_router_for_a_control_and_changes_the_length(
    cli: Cli, trained: Path, router: str, usage: float
) -> None:
    code, out, err = cli(
        "eval", trained / "a", "--router", router, "--length", 16, "--sequences", 4, "--device", "cpu", "--json"
    )
    seen = json.loads(out)
    assert code == 0 and err == "" and (seen["usage"], seen["length"], seen["sequences"]) == (usage, 16, 4)


def test_eval_takes_the_oracle_and_the_shuffled_decisions_but_no_untrained_router(cli: Cli, trained: Path) -> None:
    run = ("eval", trained / "a", "--device", "cpu", "--json")
    assert json.loads(cli(*run, "--router", "oracle")[1])["usage"] == pytest.approx(1 / 8)
    plain, shuffled = json.loads(cli(*run)[1]), json.loads(cli(*run, "--router", "shuffled")[1])
    assert shuffled["usage"] == plain["usage"] and shuffled["router"] == "shuffled:inner=linear"
    assert "weights that this run never trained" in only_error(*cli(*run, "--router", "mlp"))
    assert "expected >= 1" in only_error(*cli(*run, "--sequences", "0"))


def test_certify_a_run_and_a_recipe(cli: Cli, trained: Path) -> None:
    code, out, _ = cli("certify", "a", "--runs", trained, "--length", 16)
    assert code == 0 and out.startswith("a: causal: ")
    code, out, _ = cli("certify", "recall", *SMALL[4:], "--model.routing.router", "ema", "--length", 16, "--json")
    assert code == 0 and json.loads(out)["causal"] is True
    assert "has no effect here" in only_error(*cli("certify", "a", "--runs", trained, "--model.layers", "2"))


def test_certify_fails_for_a_model_that_leaks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from turnout.models.block import MLP

    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: forward(self, x) + x.mean(dim=1, keepdim=True))
    code, out, _ = cli("certify", "recall", *SMALL[4:], "--length", 16)
    assert code == 1 and "NOT causal" in out
    assert json.loads(cli("certify", "recall", *SMALL[4:], "--length", 16, "--json")[1])["leaks"]


def test_report_writes_one_page_for_one_run_or_several(cli: Cli, trained: Path, tmp_path: Path) -> None:
    code, out, _ = cli("report", trained / "a", trained / "a", "--out", tmp_path / "both.html")
    assert code == 0 and "both.html" in out and (tmp_path / "both.html").stat().st_size > 1000
    page = json.loads(cli("report", "a", "--runs", trained, "--json")[1])["report"]
    assert Path(page).samefile(trained / "a" / "report.html")


def test_the_demo_prints_the_result_the_savings_and_the_page_and_never_reuses_a_name(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import turnout.bench.savings as savings

    monkeypatch.setattr(savings, "measure_run", functools.partial(savings.measure_run, seconds=0.0))
    words = ["demo", *QUICK]
    words[words.index("--loop.savings") + 1] = "true"
    code, out, _ = cli(*words)
    assert code == 0
    for text in ("accuracy", "gates", "ms per step", "static_hybrid", "dense/ms", "demo-0-1/report.html"):
        assert text in out
    code, out, _ = cli(*words, "--json")
    data = json.loads(out)
    assert code == 0 and Path(data["run"]).name == "demo-0-2" and Path(data["report"]).is_file()
    assert {row["what"] for row in data["savings"]["rows"]} == {"train_step", "prefill", "decode"}


def test_json_of_train_is_the_summary_and_nothing_else(cli: Cli) -> None:
    code, out, err = cli("train", "recall", *QUICK, "--json")
    assert code == 0 and json.loads(out)["steps"] == 10 and err == ""


def test_a_name_that_is_taken_is_refused_and_resuming_a_finished_run_shows_it_again(cli: Cli, trained: Path) -> None:
    again = ("train", "recall", *QUICK, "--name", "a", "--runs", trained)
    before = (trained / "a" / "metrics.jsonl").read_bytes()
    assert "already exists; continue it with --resume" in only_error(*cli(*again))
    code, out, _ = cli(*again, "--resume", "--json")
    assert code == 0 and json.loads(out)["name"] == "a"
    assert "seed: 0 -> 1" in only_error(*cli(*again, "--resume", "--seed", "1", "--json"))
    assert (trained / "a" / "metrics.jsonl").read_bytes() == before


# Damage


def test_a_folder_that_is_no_run_is_refused_and_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("keep me")
    for verb in ("eval", "certify", "report"):
        assert "not a run folder" in only_error(*cli(verb, "mine"))
    error = only_error(*cli("train", "recall", *QUICK, "--name", "mine", "--json"))
    assert "not a run; choose another name; nothing there was changed" in error
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["notes.txt"]


def test_a_damaged_checkpoint_is_named_and_the_run_is_left_as_it_was(cli: Cli, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    shutil.copytree(trained / "a", run)
    (run / "summary.json").unlink()
    (damaged,) = (run / "checkpoint").glob("*.safetensors")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    metrics = (run / "metrics.jsonl").read_bytes()
    code, _, err = cli("train", "--resume", "--name", "a", "--json")
    assert code == 1 and "is damaged" in err and str(damaged.name) in err
    assert (run / "metrics.jsonl").read_bytes() == metrics
    (run / "model.safetensors").write_bytes(b"not a model")
    assert "not a whole safetensors file" in only_error(*cli("eval", "a"))
    (run / "model.safetensors").unlink()
    error = only_error(*cli("eval", "a"))
    assert "is not finished" in error and "turnout train --resume --name a" in error


# Signals


def test_ctrl_c_saves_and_resuming_ends_with_the_same_bits(
    cli: Cli, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    running = process("train", "recall", *JOINT, "--name", "cut")
    run = tmp_path / "runs" / "cut"
    wait_for('"kind": "train"', run / "metrics.jsonl", running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.count("\n") == 1
    assert err.startswith("turnout: interrupted: stopped after step ")
    assert err.endswith("go on with: turnout train --resume --name cut\n")
    assert not (run / "summary.json").exists() and "not finished" in cli("show", "cut")[1]
    code, out, _ = cli("train", "--resume", "--json")
    assert code == 0 and json.loads(out)["name"] == "cut"
    assert same_bits(weights(run), uninterrupted)


def test_kill_nine_loses_nothing_before_the_last_checkpoint_and_resuming_ends_with_the_same_bits(
    cli: Cli, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    running = process("train", "recall", *JOINT, "--name", "cut")
    run = tmp_path / "runs" / "cut"
    wait_for('"step": ', run / "checkpoint" / "latest.json", running)
    running.kill()
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    assert checkpoint.load(run / "checkpoint")[0] >= 10
    assert cli("train", "recall", *JOINT, "--resume", "--json")[0] == 0
    assert same_bits(weights(run), uninterrupted)
    steps = [line["step"] for line in RunDir.open(run).metrics("train")]
    assert steps == list(range(2, 141, 2))


def test_a_reader_that_leaves_is_no_error() -> None:
    running = process("list", "routers")
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert running.wait(timeout=60) == 141 and running.stderr.read() == ""


def test_probe_shows_every_layer_beside_its_untrained_twin(cli: Cli) -> None:
    words = ("probe", "mqar", "--task.vocab", "128", "--model.width", "16", "--sequences", "8")
    found = json.loads(cli(*words, "--json")[1])
    # A recipe has fresh weights, so it is its own twin.
    assert found["layers"] == found["untrained"] and len(found["layers"]) == 3
    assert "token before" in cli(*words)[1]
    assert cli("probe", "mqar", "--sequences", "1")[0] == 2


def test_the_study_has_a_page_of_its_own(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("report", "routing-paradox", "--out", tmp_path / "study.html")
    assert code == 0 and "study.html" in out
    assert "The routing paradox" in (tmp_path / "study.html").read_text()


# How far a run looks, and what a search finds on it


def test_reach_and_search_read_a_run_and_leave_a_config_that_trains(cli: Cli, tmp_path: Path) -> None:
    short = ["--schedule.steps", "4", "--loop.final_sequences", "8", "--loop.eval_sequences", "8"]
    text = Path(__file__).parent / "fixtures" / "railway.txt"
    words = ["--task.length", "64", "--task.val_frac", "0.25", "--optim.batch", "2", *short]
    code, out, err = cli("train", "pattern_cpu", "--task.path", text, "--name", "far", "--runs", tmp_path, *words)
    assert code == 0, err
    code, out, err = cli("reach", "far", "--runs", tmp_path, "--pattern", "window:size=8", "--json")
    assert code == 0, err
    assert [row["farthest"] for row in json.loads(out)["reachable"]] == [7, 14]
    assert {path.name for path in (tmp_path / "far" / "reach").iterdir()} == {
        "distance.svg",
        "reach.svg",
        "distance.csv",
    }
    code, out, err = cli("reach", "far", "--runs", tmp_path, "--pattern", "cope", "--out", tmp_path / "c", "--json")
    assert code == 0 and "contextual positions hang on the scores" in json.loads(out)["unmeasured"], err
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["reach.svg"]
    actions = "full/sinks:size=4,sinks=1/forget:gate=fixed,shortest=2,longest=2"
    code, out, err = cli("search", "far", "--runs", tmp_path, "--actions", actions, "--evaluations", 16, "--json",
                         "--sequences", 2)  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    folder = tmp_path / "far" / "search-grpo-0"
    assert len((folder / "evaluations.jsonl").read_text().splitlines()) > 3
    assert found["found"].endswith("far/search-grpo-0/found-16")
    model, config, _ = load_model(RunDir.open(folder / "found-16"))
    assert config.model.pattern == found["pattern"] == model.config.pattern
    assert Trainer(config).train()["steps"] == 4
    code, out, err = cli("generate", folder / "found-16", "--tokens", "4", "--prompt", "rail")
    assert code == 0, err
