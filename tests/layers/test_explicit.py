"""A pattern written out as one number a pair is its definition."""

from __future__ import annotations

import math

import pytest
import torch

from pattern_laws import HEADS, KV_HEADS, LIVELY, WIDTH, build, oracle_log_weight, pairs
from turnout.errors import UnsupportedError
from turnout.layers.explicit import explicit_log_weights
from turnout.layers.reading import HIDDEN
from turnout.routers.mode import SKIP

LENGTH = 19
FIXED = ("full", "window", "sinks", "dilated", "strided", "alibi", "retnet", "power_law", "head_mixture")


@pytest.mark.parametrize("name", FIXED)
def test_every_fixed_pattern_is_written_out_as_defined(name: str) -> None:
    spec = LIVELY.get(name, name)
    reach = build(spec).reach(
        torch.zeros(1, LENGTH, WIDTH), at=torch.arange(LENGTH), length=LENGTH, state=None, mode=SKIP
    )
    have = explicit_log_weights(reach, HEADS, KV_HEADS, LENGTH, torch.device("cpu"))
    assert bool((have[:, torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)] <= HIDDEN).all())
    for h, t, s in pairs(LENGTH):
        want = oracle_log_weight(spec, h, t, s)
        assert float(have[h, t, s]) == pytest.approx(HIDDEN if want == -math.inf else want, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("spec", ["cope", "top_blocks"])
def test_what_hangs_on_the_content_is_refused(spec: str) -> None:
    reach = build(spec).reach(torch.zeros(1, 9, WIDTH), at=torch.arange(9), length=9, state=None, mode=SKIP)
    with pytest.raises(UnsupportedError, match="there is no weight of a pair of positions"):
        explicit_log_weights(reach, HEADS, KV_HEADS, 9, torch.device("cpu"))
