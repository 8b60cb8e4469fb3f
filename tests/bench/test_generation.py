"""Whole answers are measured as they are made: every new token, the prompt included, usage as drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turnout.bench.generation import Answer, measure_answer
from turnout.errors import ConfigError
from turnout.recipes.lm import lm_run

MODEL = replace(lm_run("<text>", "routed", router="linear").model, layers=2, width=32, heads=2)


@pytest.mark.parametrize("arm", ["routed", "dense", "static_hybrid"])
def test_a_row_says_seconds_and_tokens_of_one_answer(arm: str) -> None:
    case = Answer(prompt=20, tokens=5, batch=2, usage=0.5)
    row = measure_answer(MODEL, arm, case, vocab=31, device=torch.device("cpu"))
    assert row["tokens_per_s"] == pytest.approx(2 * 5 / row["seconds"])
    assert row["seconds"] > 0 and row["first_s"] > 0
    assert (row["usage"] is None) == (arm != "routed") and row["usage"] != 0


def test_an_answer_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="counts >= 1"):
        Answer(prompt=4, tokens=0)
