"""The committed gallery is what the command draws, and a figure as a file brings everything it needs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from report.fake_run import Fake, write_fake_run
from turnout.claims.store import results_dir
from turnout.cli import main
from turnout.errors import DataError
from turnout.report.gallery import PIECES, draw, keep, layers_figure
from turnout.report.plot import picture
from turnout.report.run import load_run
from turnout.report.theme import page_colours, standalone

GALLERY = results_dir().parent / "docs" / "gallery"


def test_the_committed_gallery_is_what_the_command_draws(tmp_path: Path) -> None:
    written = draw(tmp_path)
    assert {path.name for path in written} == {path.name for path in GALLERY.iterdir()}
    for path in written:
        assert path.read_text() == (GALLERY / path.name).read_text(), path.name


def test_the_page_shows_every_figure_once(tmp_path: Path) -> None:
    page = (GALLERY / "README.md").read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert sorted(shown) == sorted(path.name for path in GALLERY.glob("*.svg"))
    assert all((GALLERY / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", page))


def test_an_empty_folder_of_results_draws_what_ships_with_the_library(tmp_path: Path) -> None:
    written = draw(tmp_path / "out", tmp_path / "empty")
    assert {path.stem for path in written} == {"break-even", "README"}


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.svg")), ids=lambda path: path.name)
def test_a_figure_defines_every_colour_it_uses_for_light_and_dark(path: Path) -> None:
    svg = path.read_text()
    ElementTree.fromstring(svg)
    light, _, dark = svg.partition("@media (prefers-color-scheme:dark)")
    used = set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert used and used <= set(re.findall(r"(--[\w-]+):", light)) and used <= set(re.findall(r"(--[\w-]+):", dark))
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_a_resolved_figure_has_plain_colours_only() -> None:
    body = '<path class="line" d="M0 0" style="stroke:light-dark(#111111,#eeeeee);fill:var(--panel)"/>'
    svg = picture(100, 50, [body], label="x")
    for theme, line in (("light", "#111111"), ("dark", "#eeeeee")):
        found = standalone(svg, theme=theme)  # type: ignore[arg-type]
        assert "var(" not in found and "light-dark" not in found and f"stroke:{line}" in found
        assert page_colours()[theme == "dark"]["--panel"] in found
    with pytest.raises(DataError, match="viewBox"):
        standalone("<svg></svg>", theme="light")


def test_a_kept_map_is_that_of_the_length_that_was_asked_for(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "a", Fake(name="a", layers=2, steps=400))
    for step, length in ((40, 16), (120, 32)):
        path = run / "gates" / f"step-{step:06d}.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(raw | {"length": length, "mean": [row[:length] for row in raw["mean"]]}))
    kept = json.loads(keep(run, "short", tmp_path / "results", length=32).read_text())
    assert kept["gates"]["step"] == 120 and len(kept["gates"]["sequences"]) <= 2
    last = json.loads(keep(run, "last", tmp_path / "results").read_text())
    assert last["gates"]["step"] == 400
    with pytest.raises(DataError, match="of length 7"):
        keep(run, "none", tmp_path / "results", length=7)


def test_the_verb_keeps_draws_and_names_what_belongs_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_fake_run(tmp_path / "runs" / "a", Fake(name="a", layers=2, steps=400))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    words = [
        "gallery",
        "--runs",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "r"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--keep", "a", "--name", "published-size-126"]) == 0
    assert (tmp_path / "o" / "gate-map-126.svg").is_file()
    assert main([*words, "--keep", "a"]) == 2
    assert "belong together" in capsys.readouterr().err


def test_a_map_of_a_run_that_did_not_end_says_so(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "a", Fake(name="a", layers=2, steps=400))
    drawn = next(piece for piece in PIECES if piece.name == "gate-map-126").draw
    for name, ended in (("whole", True), ("cut", False)):
        if not ended:
            (run / "summary.json").unlink()
        keep(run, "published-size-126", tmp_path / name)
        figure = drawn(tmp_path / name)
        assert figure is not None and ("did not end" in figure.caption) is not ended


def test_a_layer_and_a_gate_are_drawn_only_together(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "a", Fake(name="a", layers=2, steps=400))
    drawn = next(piece for piece in PIECES if piece.name == "layer-or-gate").draw
    keep(run, "published-recipe-510", tmp_path / "r")
    assert drawn(tmp_path / "r") is None
    keep(run, "published-size-510", tmp_path / "r")
    figure = drawn(tmp_path / "r")
    assert figure is not None and len({row[0] for row in figure.data.rows}) == 2


def test_savings_of_a_run_on_a_gpu_are_drawn_with_their_energy(tmp_path: Path) -> None:
    run = load_run(write_fake_run(tmp_path / "a", Fake(name="a", layers=2, steps=400)))
    kept = {"name": "a", "manifest": run.manifest, "summary": run.summary}
    (tmp_path / "savings").mkdir()
    file = tmp_path / "savings" / "one-gate-nvidia-h200.json"
    file.write_text(json.dumps(kept | {"savings": run.savings_meta | {"rows": run.savings}}))
    figure = next(piece for piece in PIECES if piece.name == "savings").draw(tmp_path)
    assert figure is not None and "measured energy (J)" in figure.wide


def test_every_tile_of_the_layers_says_its_number() -> None:
    runs = [{"seed": s, "usage_layers": [0.0, 0.25, 0.998, 1.0], "usage": 0.5, "accuracy": 1.0, "n_eval": 9,
             "device": "cpu"} for s in range(2)]  # fmt: skip
    figure = layers_figure(runs)
    assert all(figure.wide.count(words) >= 2 for words in ("25.0", "99.8", "100", "0"))
    assert len(figure.data.rows) == 8


def test_the_leak_is_drawn_when_its_runs_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "DR1"
    folder.mkdir(parents=True)
    for name, honest in (("sequence", 1.5), ("prefix", 1.2)):
        record = {"arm_name": name, "seed": 0, "study": {"honest": {"teacher_forced": 1.2, "honest": honest}}}
        (folder / f"{name}-0.json").write_text(json.dumps(record))
    figure = next(piece for piece in PIECES if piece.name == "leak").draw(tmp_path)
    assert figure is not None and [row[0] for row in figure.data.rows] == ["sequence", "prefix"]
    assert ">+0.3000<" in figure.wide and ">+0.0000<" in figure.wide
