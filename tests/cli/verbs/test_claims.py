"""`turnout claims`: the rows of the claims that were asked for."""

from __future__ import annotations

import json

import pytest

from turnout.cli import main


def test_ids_letters_and_groups_choose_rows(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> set[str]:
        assert main(["claims", *words, "--json"]) == 0
        return {row["id"] for row in json.loads(capsys.readouterr().out)}

    assert shown("RP1") == {"RP1"}
    assert shown("RA") == {f"RA{i}" for i in range(1, 7)}
    assert {"RP1", "RA1", "TH1"} < shown() and shown("heuristics") < shown()
