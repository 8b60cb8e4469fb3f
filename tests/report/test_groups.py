"""Groups: seeds together, different experiments apart."""

from __future__ import annotations

from pathlib import Path

from report.fake_run import Fake, fake_family, write_fake_run
from turnout.report.controls import equal_usage, equal_usage_words, group_rows
from turnout.report.groups import group_runs, provenance
from turnout.report.run import load_run


def test_seeds_group_and_mechanisms_do_not(tmp_path: Path) -> None:
    groups = group_runs([load_run(folder) for folder in fake_family(tmp_path, seeds=2)])
    labels = [group.label for group in groups]
    assert labels == [
        "linear",
        "random:p=0.004",
        "frozen",
        "oracle",
        "joint (linear)",
        "static hybrid",
        "dense",
        "local",
    ]
    assert all(len(group.runs) == 2 for group in groups)
    assert [group.label for group in groups if group.learned] == ["linear"]
    assert len({group.ink.light for group in groups}) == len(groups)


def test_one_router_under_two_settings_is_two_groups_named_by_the_difference(tmp_path: Path) -> None:
    folders = [
        write_fake_run(tmp_path / f"{layers}-{seed}", Fake(layers=layers, seed=seed, steps=60, length=16))
        for layers in (2, 3)
        for seed in (0, 1)
    ]
    groups = group_runs([load_run(folder) for folder in folders])
    assert [group.label for group in groups] == ["linear, layers=2", "linear, layers=3"]


def test_lengths_are_told_apart_when_they_differ(tmp_path: Path) -> None:
    folders = [write_fake_run(tmp_path / str(t), Fake(length=t, steps=60)) for t in (16, 32)]
    assert [group.label for group in group_runs([load_run(f) for f in folders])] == ["linear, T=16", "linear, T=32"]


def test_equal_usage_finds_the_controls_near_the_learned_router_only(tmp_path: Path) -> None:
    groups = group_runs([load_run(folder) for folder in fake_family(tmp_path, seeds=2)])
    assert [group.label for group in equal_usage(groups[0], groups)] == ["random:p=0.004", "frozen", "oracle"]
    far = [group for group in groups if group.label in ("linear", "dense")]
    assert "cannot say what learning to route is worth" in equal_usage_words(far)[0]
    assert equal_usage_words(groups[:1]) == []


def test_models_without_routed_layers_have_the_usage_of_their_layout(tmp_path: Path) -> None:
    groups = {group.label: group for group in group_runs([load_run(f) for f in fake_family(tmp_path, seeds=1)])}
    usages = {label: groups[label].estimate("usage").mean for label in ("dense", "static hybrid", "local")}
    assert usages == {"dense": 1.0, "static hybrid": 0.5, "local": 0.0}
    assert groups["dense"].estimate("gates_per_seq").mean == 2 * 128


def test_rows_carry_intervals_and_say_where_they_come_from(tmp_path: Path) -> None:
    rows = {row.label: row for row in group_rows(group_runs([load_run(f) for f in fake_family(tmp_path, seeds=3)]))}
    assert rows["linear"].method == "Wilson" and rows["linear"].quality.startswith("100")
    assert rows["frozen"].method == "t over seeds" and rows["frozen"].seeds == 3


def test_provenance_names_n_seeds_device_and_commit(tmp_path: Path) -> None:
    runs = [load_run(write_fake_run(tmp_path / str(s), Fake(seed=s, steps=60))) for s in (0, 10, 2)]
    words = "3 runs · n = 1,024 evaluated targets · seeds 0, 2, 10 · cpu (Generic 2-core CPU) · commit 0123456789"
    assert provenance(runs) == words
