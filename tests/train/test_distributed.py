"""Two processes train what one trains, their checkpoints are read by any number, and a lost one says what is kept."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from turnout.config import to_dict
from turnout.errors import CheckpointError
from turnout.models import ModelConfig, RoutingConfig
from turnout.tasks import RecallConfig
from turnout.train import checkpoint
from turnout.train.config import JointConfig, LoopConfig, OptimConfig, RunConfig
from turnout.train.loop import train
from turnout.train.rundir import RunDir

# Without gate noise all processes decide alike; the random router would draw other gates in each.
CONFIG = RunConfig(
    device="cpu", threads=1, task=RecallConfig(length=16),
    model=ModelConfig(
        layers=2, width=16, heads=2, local="conv:kernel=3", form="llama", layout="RA", tie=True,
        routing=RoutingConfig(noise="none", router="linear:bias=0.5"),
    ),
    schedule=JointConfig(steps=6), optim=OptimConfig(batch=4, lr=1e-3, loss_chunk=5),
    loop=LoopConfig(
        log_every=1, eval_every=3, eval_sequences=4, final_sequences=4, checkpoint_every=2, skip_below=0.0,
        savings=False,
    ),
)  # fmt: skip


def job(root: Path, name: str, config: RunConfig, *, resume: bool = False, kill: int | None = None) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "root": str(root), "name": name, "config": to_dict(config), "resume": resume, "kill": kill, "port": port
    }  # fmt: skip


def group(size: int, folder: Path, jobs: list[dict[str, Any]]) -> list[subprocess.CompletedProcess[str]]:
    path = folder / f"jobs-{size}-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(jobs))
    started = []
    for rank in range(size):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        words = [sys.executable, str(Path(__file__).with_name("together.py")), str(path)]
        started.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    done = []
    for process in started:
        out, err = process.communicate(timeout=150)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def losses(root: Path, name: str) -> list[float]:
    return [line["task_loss"] for line in RunDir.open(root / name).metrics("train")]


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(root / name / "model.safetensors")[0]


def test_two_processes_train_what_one_trains_and_any_number_goes_on(tmp_path: Path) -> None:
    sharded = replace(CONFIG, loop=replace(CONFIG.loop, parallel="fsdp"))
    # Its matrices have momentum, everything else the moments of AdamW: both are written in parts and read by one.
    muon = replace(sharded, optim=replace(CONFIG.optim, optimizer="muon"))
    train(CONFIG, root=tmp_path, name="one")
    train(muon, root=tmp_path, name="one-muon")
    jobs = [job(tmp_path, "ddp", CONFIG), job(tmp_path, "fsdp", sharded)]
    # The main process is killed behind the checkpoint of step 4; the other loses its connection and stops.
    lost = group(2, tmp_path, [*jobs, job(tmp_path, "killed", muon, kill=5)])
    assert lost[0].returncode == -9, lost[0].stderr
    assert lost[1].returncode == 1, lost[1].stderr
    assert "the checkpoint of step 4" in lost[1].stderr and "--resume" in lost[1].stderr
    assert json.loads((tmp_path / "killed/checkpoint/latest.json").read_text())["step"] == 4
    with pytest.raises(CheckpointError, match="several processes"):
        train(muon, root=tmp_path, name="killed", resume=True)
    (alone,) = group(1, tmp_path, [job(tmp_path, "killed", muon, resume=True)])
    assert alone.returncode == 0, alone.stderr

    # Sums over a batch are cut in two and added up in another order: a few units in the last place of a loss of 3.
    tolerance = 64 * torch.finfo(torch.float32).eps
    for name, single in (("ddp", "one"), ("fsdp", "one"), ("killed", "one-muon")):
        expected = losses(tmp_path, single)
        assert len(expected) == 6
        assert losses(tmp_path, name) == pytest.approx(expected, rel=tolerance), name
        same, found = weights(tmp_path, single), weights(tmp_path, name)
        assert found.keys() == same.keys()
        for key, value in found.items():
            # AdamW divides by the root of its second moment, Muon rounds to bfloat16 what it then makes orthogonal: a
            # weight may differ by a share of its step, which is lr, or 0.2 lr times the root of a matrix's longer side.
            step = CONFIG.optim.lr * max(1.0, 0.2 * max(value.shape) ** 0.5 if name == "killed" else 1.0)
            assert float((value - same[key]).abs().max()) <= 0.05 * 6 * step, (name, key)
        summary = RunDir.open(tmp_path / name).summary()
        assert summary is not None and summary["steps"] == 6
