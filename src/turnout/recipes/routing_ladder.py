"""What a match needs before a pairwise router: rungs of the ladder, and on which side of the query the answer lies.

Arms of their own, because the study has no such rows: `routing_paradox` reads them as it reads the others.
"""

from __future__ import annotations

from typing import Any

from turnout.recipes.routing_paradox import SMALL, BedArm, PaperRow

# Decoys share a half of the key, and four picks would take them all: one pick, no neighbour.
ONE: dict[str, Any] = {"k": 1, "expand": 0}


def _rung(match: str, flow: str, name: str, *, control: bool = False) -> BedArm:
    # Two halves and their gap leave no room for a distance at 64 tokens.
    task = {"match": match, "distractors": 0} | ({"min_distance": 12} if match == "gap" else {})
    name = f"{match.replace('_', ' ')}, {name}"
    return BedArm(name=name, flow=flow, task=task, model=ONE, scales=(SMALL,), control=control, quick=False)


def _before(flow: str, name: str, label: str) -> BedArm:
    name = f"{name}, answer first, {label}"
    return BedArm(name=name, flow=flow, label=label, task={"direction": "before"}, scales=(SMALL,), quick=False)


LADDER = (
    PaperRow(
        claim="RPL",
        statement="(ours) keys of two adjacent tokens need a shift and nothing more",
        quoted="(ours; raw embeddings see one half, two candidates: 50 %)",
        published=0.99,
        arms=(_rung("two_token", "shift", "shift"), _rung("two_token", "none", "raw", control=True)),
    ),
    PaperRow(
        claim="RPL",
        statement="(ours) keys whose halves lie 3 to 8 apart need a wider convolution",
        quoted="(ours)",
        published=0.99,
        arms=(
            _rung("gap", "shift:taps=9", "convolution of 9 taps"),
            _rung("gap", "shift", "shift", control=True),
            _rung("gap", "attention", "attention", control=True),
        ),
    ),
    PaperRow(
        claim="RPL",
        statement="(ours) two hops need a pairwise layer before the router",
        quoted="(ours)",
        published=0.99,
        arms=(
            _rung("two_hop", "attention:layers=2", "two attention layers"),
            _rung("two_hop", "shift", "shift", control=True),
            _rung("two_hop", "none", "raw", control=True),
        ),
    ),
    PaperRow(
        claim="RPL",
        statement="(ours) a causal flow routes as well when the answer lies before the query",
        quoted="(ours; a causal SSM 2.2 % with the answer behind the query)",
        published=0.99,
        arms=(
            _before("ssm", "ssm causal", "key"),
            _before("attention:form=causal", "attention causal", "key"),
            _before("attention:form=causal", "attention causal", "value"),
            _before("shift", "shift", "value"),
        ),
    ),
)
