"""A sequence as a picture: every token and every open gate is in it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from report.fake_run import Fake, write_fake_run
from turnout.report.run import Run, load_run
from turnout.report.sequence import MOST_TOKENS, sequence_figure


def fake(tmp_path: Path, **settings: object) -> Run:
    return load_run(write_fake_run(tmp_path / "a", Fake(name="a", layers=3, steps=400, **settings)))  # type: ignore[arg-type]


def test_every_token_and_every_open_gate_is_drawn(tmp_path: Path) -> None:
    run = fake(tmp_path, task="text", final_usage=0.2, final_quality=2.0)
    figure = sequence_figure(run, 1)
    assert figure is not None and run.gates is not None
    item = run.gates.sequences[1]
    opened = sum(map(sum, item.taken))
    for svg in (figure.wide, figure.narrow):
        assert svg.count("font-family:monospace") == len(item.tokens)
        # One rectangle a gate, and one a layer in the legend.
        assert len(re.findall(r'style="fill:var\(--l\d\)"', svg)) == opened + run.gates.layers
    assert sum(len(str(row[2]).split()) for row in figure.data.rows) == opened


def test_past_the_last_sequence_the_last_one_is_drawn_and_without_any_none(tmp_path: Path) -> None:
    run = fake(tmp_path)
    assert run.gates is not None
    last = sequence_figure(run, len(run.gates.sequences) - 1)
    again = sequence_figure(run, 99)
    assert last is not None and again is not None and last.wide == again.wide
    run.gates.sequences.clear()
    assert sequence_figure(run) is None


def test_a_long_sequence_is_cut_in_the_picture_and_whole_in_the_data(tmp_path: Path) -> None:
    run = fake(tmp_path, length=MOST_TOKENS + 10)
    figure = sequence_figure(run)
    assert figure is not None and len(figure.data.rows) == MOST_TOKENS + 10
    assert figure.wide.count("font-family:monospace") == MOST_TOKENS and "are drawn" in figure.caption
