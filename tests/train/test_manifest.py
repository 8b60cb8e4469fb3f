from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import turnout
from turnout.train import manifest
from turnout.train.manifest import build_manifest, cpu_model, device_name, git_commit


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallConfig:
    layers: int = 2
    lengths: tuple[int, ...] = (1, 2)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one committed file; returns the file."""
    source = tmp_path / "package" / "code.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    person = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    for command in (["init", "-q"], ["add", "."], [*person, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=clean)
    return source


def test_the_manifest_has_every_entry_and_is_json() -> None:
    entries = build_manifest(SmallConfig(), 7, "cpu", ["turnout", "train", "my recall", "--seed", "7"])
    assert json.loads(json.dumps(entries)) == entries
    assert entries["config"] == {"layers": 2, "lengths": [1, 2]} and entries["seed"] == 7
    assert entries["versions"] == {
        "turnout": turnout.__version__,
        "torch": str(torch.__version__),
        "python": sys.version.split()[0],
    }
    assert entries["command"] == "turnout train 'my recall' --seed 7"
    assert entries["device"] == "cpu" and entries["device_name"]
    assert entries["host_cores"] >= 1 and entries["threads"] == torch.get_num_threads()
    created = datetime.datetime.fromisoformat(entries["created"])
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(minutes=1)


def test_a_config_dictionary_a_torch_device_and_the_own_command_line_are_taken() -> None:
    entries = build_manifest({"a": 1}, 0, torch.device("cpu"))
    assert entries["config"] == {"a": 1} and entries["device"] == "cpu"
    assert Path(sys.argv[0]).name in entries["command"]


def test_the_commit_is_that_of_the_checkout_and_says_dirty(checkout: Path, monkeypatch) -> None:
    # As in a git hook, which must not redirect the question to its own repository.
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    clean = git_commit(checkout)
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (checkout.parent / "notes.txt").write_text("an untracked file changes no result")
    assert git_commit(checkout) == clean
    checkout.write_text("x = 2\n")
    assert git_commit(checkout) == f"{clean}+dirty"


def test_a_package_inside_another_projects_checkout_does_not_claim_its_commit(checkout: Path) -> None:
    installed = checkout.parent / "site-packages" / "turnout.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert git_commit(installed) == "unknown"


def test_without_git_or_a_checkout_the_commit_is_unknown(checkout: Path, tmp_path_factory, monkeypatch) -> None:
    elsewhere = tmp_path_factory.mktemp("plain") / "code.py"
    elsewhere.write_text("")
    assert git_commit(elsewhere) == "unknown"
    monkeypatch.setenv("PATH", "")
    assert git_commit(checkout) == "unknown"


def test_a_git_that_hangs_does_not_stop_the_run(checkout: Path, monkeypatch) -> None:
    def hang(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(manifest.subprocess, "run", hang)
    assert git_commit(checkout) == "unknown"


def test_the_cpu_is_named_by_the_system_or_its_architecture(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 2.00GHz\n\nmodel name\t: Fast CPU @ 2.00GHz\n")
    assert cpu_model(cpuinfo) == "Fast CPU @ 2.00GHz"
    cpuinfo.write_text("processor\t: 0\n")
    assert cpu_model(cpuinfo) and cpu_model(tmp_path / "none")


def test_the_gpu_is_named_as_cuda_calls_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    assert device_name("cuda:1") == "GPU of cuda:1" and device_name(torch.device("cuda")) == "GPU of cuda"
    assert device_name("meta") == "meta"
