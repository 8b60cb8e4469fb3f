"""What may be read: runs are direct children of the folder, and their files lie inside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from report.fake_run import write_fake_run
from turnout.dashboard.folder import NotThere, RunsFolder
from turnout.errors import DataError


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.mkdir()
    write_fake_run(path / "other")
    (path / "manifest.json").write_text('{"password": "swordfish"}')
    return path


@pytest.fixture
def runs(tmp_path: Path) -> RunsFolder:
    root = tmp_path / "runs"
    root.mkdir()
    write_fake_run(root / "a")
    return RunsFolder(root)


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "a/../../secret", "a\\b", "a\0b", "/etc", "nope"])
def test_a_name_that_is_no_child_of_the_folder_is_not_there(runs: RunsFolder, secret: Path, name: str) -> None:
    with pytest.raises(NotThere):
        runs.path(name)


def test_a_folder_with_no_file_of_a_run_is_none(runs: RunsFolder) -> None:
    (runs.root / "notes").mkdir()
    with pytest.raises(NotThere, match="is no run"):
        runs.path("notes")
    assert [entry.name for entry in runs.entries()] == ["a"]


def test_a_linked_run_that_leads_outside_is_refused_and_not_listed(runs: RunsFolder, secret: Path) -> None:
    (runs.root / "link").symlink_to(secret / "other")
    with pytest.raises(NotThere, match="leads outside"):
        runs.path("link")
    assert [entry.name for entry in runs.entries()] == ["a"]


@pytest.mark.parametrize("file", ["manifest.json", "metrics.jsonl", "gates/step-000200.json"])
def test_a_linked_file_that_leads_outside_is_refused(runs: RunsFolder, secret: Path, file: str) -> None:
    (runs.root / "a" / file).unlink()
    (runs.root / "a" / file).symlink_to(secret / "manifest.json")
    assert runs.stamp("a", file) is None
    with pytest.raises(NotThere, match="leads outside"), runs.open("a", file):
        pass


def test_a_linked_gate_folder_that_leads_outside_has_no_steps(runs: RunsFolder, secret: Path) -> None:
    import shutil

    shutil.rmtree(runs.root / "a" / "gates")
    (runs.root / "a" / "gates").symlink_to(secret / "other" / "gates")
    assert runs.gate_steps("a") == []
    with pytest.raises(NotThere), runs.open("a", "gates/final.json"):
        pass


def test_a_link_that_stays_inside_is_followed(runs: RunsFolder) -> None:
    (runs.root / "b").symlink_to(runs.root / "a")
    assert [entry.name for entry in runs.entries()] == ["a", "b"]
    assert runs.read_json("b", "manifest.json")["name"] == "demo"


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting_for_it(runs: RunsFolder) -> None:
    (runs.root / "a" / "metrics.jsonl").unlink()
    os.mkfifo(runs.root / "a" / "metrics.jsonl")
    with pytest.raises(NotThere, match="no regular file"), runs.open("a", "metrics.jsonl"):
        pass


def test_a_link_in_a_circle_is_refused(runs: RunsFolder) -> None:
    (runs.root / "loop").symlink_to(runs.root / "loop")
    assert [entry.name for entry in runs.entries()] == ["a"]


def test_nested_json_that_would_exhaust_the_parser_is_damage(runs: RunsFolder) -> None:
    (runs.root / "a" / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="not JSON"):
        runs.read_json("a", "manifest.json")


def test_a_missing_folder_has_no_runs(tmp_path: Path) -> None:
    assert RunsFolder(tmp_path / "nope").entries() == []
