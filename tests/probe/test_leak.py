"""The toy proof: tokens with a known causal optimum; only a router that reads the future beats it."""

from __future__ import annotations

import math

import pytest

from turnout.models import ModelConfig
from turnout.probe.leak import LeakProof, prove_leak

SPECS = {
    "sequence": "sequence:hidden=32,leak=true",
    "prefix": "prefix:hidden=32",
    "token": "token:hidden=32",
    "static": "static",
    "none": "none",
}


def proof(name: str, steps: int) -> LeakProof:
    config = ModelConfig(
        layers=1, width=32, heads=4, layout="A", positions="rope", mlp_ratio=2.0, directions=SPECS[name]
    )
    return prove_leak(config, steps=steps, n_eval=2000)


def test_the_published_router_beats_the_causal_optimum_and_is_worse_than_it_once_the_future_is_taken_away() -> None:
    found = proof("sequence", 150)
    assert found.leaks and found.optimum == math.log(4)
    # A fifth of a nat: far beyond what chance gives, as in the study's own toy.
    assert found.teacher_forced < found.optimum - 0.2
    assert found.honest - 4 * found.honest_stderr > found.optimum


@pytest.mark.parametrize("name", ["prefix", "token", "static", "none"])
def test_causal_routers_do_not_beat_it_and_their_honest_loss_is_the_same(name: str) -> None:
    found = proof(name, 60)
    assert not found.leaks
    # They have learnt that there is nothing to learn, so that not beating the optimum means something.
    assert found.teacher_forced < found.optimum + 0.05
    assert abs(found.honest - found.teacher_forced) < found.stderr
