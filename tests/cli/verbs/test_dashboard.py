"""`turnout dashboard` refuses what cannot be a folder of runs before it opens a port, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

import turnout.dashboard
from turnout.cli import main


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were served, instead of serving them."""
    found: list[Path] = []
    monkeypatch.setattr(turnout.dashboard, "serve", lambda runs, **_: found.append(runs))
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("file",), "file is no folder; give the folder of all runs"),
        ((".", "--results", "file"), "file is no folder; give the folder of committed results"),
        ((".", "--results", "gone"), "there is no folder gone; leave out --results"),
        ((".", "--port", "70000"), "--port=70000; expected 0 to 65535"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(
    words: tuple[str, ...], said: str, served: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["dashboard", *words]) == 2
    assert said in capsys.readouterr().err and not served


def test_a_folder_that_is_not_there_yet_is_served_and_said(
    served: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", str(tmp_path / "later")]) == 0
    assert "its runs are shown as soon as it is there" in capsys.readouterr().err
    assert served == [tmp_path / "later"]
