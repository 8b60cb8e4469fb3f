from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from faults import Killed, disk_full, failing, no_permission
from turnout.errors import CheckpointError, DataError
from turnout.train import checkpoint
from turnout.train.checkpoint import check_tensors, exists, load, save

STATE = {"phase": "ramp", "best": 0.1 + 0.2, "worst": math.inf, "seen": [1, 2, 3], "task": {"batch": 17, "none": None}}


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((5,), float(step)), "b": torch.arange(step)}


def stored_step(folder: Path) -> int:
    """Step of the checkpoint, after checking that all of its parts belong to that step."""
    step, tensors, state = load(folder)
    assert state == {"step": step}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_of(step).items())
    return step


def put(folder: Path, step: int) -> None:
    save(folder, step, tensors_of(step), {"step": step})


def test_what_is_saved_comes_back_exactly(tmp_path: Path) -> None:
    save(tmp_path, 12, tensors_of(12), STATE)
    step, tensors, state = load(tmp_path)
    assert (step, state) == (12, STATE) and tensors.keys() == {"a", "b"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_of(12).items())


@pytest.mark.parametrize("old", [None, 1, 2])
def test_a_kill_at_any_point_leaves_the_old_or_the_new_checkpoint(tmp_path: Path, old: int | None) -> None:
    # old == 2 saves the same step twice, as an interrupt right after a regular checkpoint does.
    seen = set()
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        if old is not None:
            put(folder, old)
        try:
            with failing(at, Killed) as fault:
                put(folder, 2)
        except Killed:
            pass
        found = stored_step(folder) if exists(folder) else None
        assert found in (old, 2)
        seen.add(found)
        put(folder, 3)
        assert stored_step(folder) == 3
        assert sorted(path.name for path in folder.iterdir()) == [
            "latest.json",
            "step-000003.json",
            "step-000003.safetensors",
        ]
        if fault.call is None:
            break
    assert at > 15 and seen == {old, 2}


def test_a_kill_during_the_second_save_of_a_step_keeps_the_first(tmp_path: Path) -> None:
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        save(folder, 2, {"a": torch.zeros(3)}, {"take": 1})
        try:
            with failing(at, Killed) as fault:
                save(folder, 2, {"a": torch.ones(3)}, {"take": 2})
        except Killed:
            pass
        step, tensors, state = load(folder)
        assert (step, state["take"], tensors["a"].tolist()) in [(2, 1, [0.0] * 3), (2, 2, [1.0] * 3)]
        if fault.call is None:
            break


@pytest.mark.parametrize("make_error", [disk_full, no_permission])
def test_a_full_disk_at_any_point_is_a_data_error_and_loses_nothing(tmp_path: Path, make_error) -> None:
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        put(folder, 1)
        with failing(at, make_error) as fault:
            try:
                put(folder, 2)
            except DataError as error:
                assert str(folder) in str(error)
        assert stored_step(folder) in (1, 2)
        assert not list(folder.glob(".*.tmp"))
        if fault.call is None:
            break


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    script = (
        "import itertools, sys, torch\n"
        "from turnout.train.checkpoint import save\n"
        "for step in itertools.count(1):\n"
        "    tensors = {'a': torch.full((5,), float(step)), 'b': torch.arange(step)}\n"
        "    save(sys.argv[1], step, tensors, {'step': step})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not exists(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    # The folder stays readable while it is being written.
    for _ in range(20):
        assert stored_step(tmp_path) >= 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    last = stored_step(tmp_path)
    put(tmp_path, last + 1)
    assert stored_step(tmp_path) == last + 1 and len(list(tmp_path.iterdir())) == 3


def test_a_new_checkpoint_replaces_the_old_files(tmp_path: Path) -> None:
    for step in (1, 2, 2, 2, 3):
        put(tmp_path, step)
        assert stored_step(tmp_path) == step and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("ending", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "other", "gone", "empty"])
def test_damage_to_either_file_is_a_checkpoint_error_that_names_it(tmp_path: Path, ending: str, damage: str) -> None:
    put(tmp_path, 5)
    path = tmp_path / f"step-000005{ending}"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "other":
        put(tmp_path / "other", 6)
        shutil.copy(tmp_path / "other" / f"step-000006{ending}", path)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"step-000005{ending}.*; (restore|the folder was copied in part)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1, "st', "not JSON"),
        ("[]", "not a checkpoint pointer"),
        ('{"step": 3}', "not a checkpoint pointer"),
        ('{"format": 2}', "newer version.*upgrade"),
        ('{"format": 1, "step": 3}', "lacks the step, tensors or state"),
        ('{"format": 1, "step": 3, "tensors": {"file": "../x", "sha256": ""}, "state": {}}', "lacks"),
    ],
)
def test_a_damaged_or_foreign_pointer_is_a_checkpoint_error(tmp_path: Path, text: str, words: str) -> None:
    put(tmp_path, 1)
    (tmp_path / "latest.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


def test_a_damaged_pointer_is_replaced_by_the_next_save(tmp_path: Path) -> None:
    put(tmp_path, 1)
    (tmp_path / "latest.json").write_text("{")
    put(tmp_path, 1)
    assert stored_step(tmp_path) == 1


def test_a_missing_checkpoint_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no latest\.json in it"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="it is a file"):
        load(tmp_path / "file")
    assert not exists(tmp_path)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
def test_pickles_are_refused_by_name_and_never_opened(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"not even a pickle")
    for given in (path, tmp_path):
        with pytest.raises(CheckpointError, match=f"model{ending} is a pickle.*use safetensors"):
            load(given)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({1: "a"}, "key 1"),
        ({"a": {"b": [torch.ones(1)]}}, r"state\.a\.b\[0\] is a Tensor"),
        ({"a": {1, 2}}, "is a set"),
    ],
)
def test_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path: Path, state, words: str) -> None:
    put(tmp_path, 1)
    with pytest.raises(CheckpointError, match=words):
        save(tmp_path, 2, tensors_of(2), state)
    assert stored_step(tmp_path) == 1


def test_not_finite_floats_in_the_state_survive(tmp_path: Path) -> None:
    save(tmp_path, 1, {}, {"a": [math.nan, math.inf, -math.inf]})
    _, tensors, state = load(tmp_path)
    assert tensors == {} and math.isnan(state["a"][0]) and state["a"][1:] == [math.inf, -math.inf]


def test_matching_tensors_pass_the_check() -> None:
    check_tensors(tensors_of(3), tensors_of(3))


@pytest.mark.parametrize(
    ("got", "words"),
    [
        ({"a": torch.zeros(5)}, r"1 missing \(b\)"),
        (tensors_of(3) | {"c": torch.zeros(1)}, r"1 unexpected \(c\)"),
        (tensors_of(4), r"b is int64 \[4\], expected int64 \[3\]"),
        ({"a": torch.zeros(5).double(), "b": torch.arange(3)}, r"a is float64 \[5\], expected float32 \[5\]"),
        ({f"x{i}": torch.zeros(1) for i in range(9)}, r"9 unexpected \(x0, x1, x2, …\)"),
    ],
)
def test_foreign_tensors_are_named_with_what_was_expected(got: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"{words}.*belongs to another config"):
        check_tensors(tensors_of(3), got)


def test_the_pointer_is_small_readable_json(tmp_path: Path) -> None:
    put(tmp_path, 120)
    pointer = json.loads((tmp_path / "latest.json").read_text())
    assert pointer["step"] == 120 and pointer["format"] == checkpoint.FORMAT
    assert pointer["tensors"]["file"] == "step-000120.safetensors" and pointer["state"]["file"] == "step-000120.json"
