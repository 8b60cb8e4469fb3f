"""What a match needs before a pairwise router: rungs of the ladder, on which side of the query the answer lies, how
far away, and how large the state of a scan is.

Arms of their own, because the study has no such rows: `routing_paradox` reads them as it reads the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnout.recipes.routing_paradox import SMALL, BedArm, PaperRow

# Decoys share a half of the key, and four picks would take them all: one pick, no neighbour.
ONE: dict[str, Any] = {"k": 1, "expand": 0}


def _hops(flow: str, name: str, *, control: bool = False) -> BedArm:
    # Eight labelled rows a sequence; seven queries more leave less room for a distance.
    task = {"match": "two_hop", "distractors": 0, "queries": 8, "min_distance": 8}
    run = {"steps": 4000, "train_sequences": 0, "lrs": (3e-3,)}
    return BedArm(
        name=f"two hop, {name}, 8 queries", flow=flow, task=task, model=ONE | {"width": 64}, run=run, scales=(SMALL,),
        control=control, quick=False,
    )  # fmt: skip


def _rung(match: str, flow: str, name: str, *, control: bool = False) -> BedArm:
    # Two halves and their gap leave no room for a distance at 64 tokens.
    task = {"match": match, "distractors": 0} | ({"min_distance": 12} if match == "gap" else {})
    name = f"{match.replace('_', ' ')}, {name}"
    return BedArm(name=name, flow=flow, task=task, model=ONE, scales=(SMALL,), control=control, quick=False)


def _before(flow: str, name: str, label: str) -> BedArm:
    name = f"{name}, answer first, {label}"
    return BedArm(name=name, flow=flow, label=label, task={"direction": "before"}, scales=(SMALL,), quick=False)


# Tokens between query and evidence: the small size asks for 25 and more, the published one for 200.
NEAR, FAR = {"min_distance": 4, "max_distance": 20}, {"min_distance": 40}


def _scan(form: str, name: str, label: str, *, state: int = 16, task: Mapping[str, Any] | None = None) -> BedArm:
    flow = f"ssm:form={form},state={state}"
    # A match 40 tokens away is learned late.
    run = {"steps": 1000 if task == FAR else 500, "lrs": (3e-3,)}
    name = f"ssm {form}, {name}, {label}"
    return BedArm(name=name, flow=flow, label=label, task=task or {}, run=run, scales=(SMALL,), quick=False)


LADDER = (
    PaperRow(
        claim="RP2",
        statement="(ours) a causal SSM stays at chance with a state of 4 or 64, near and far",
        quoted="(ours; state and distance of the 2.2 % [1.6] unknown and 200 or more)",
        published=0.022,
        arms=(
            _scan("causal", "state of 4", "key", state=4),
            _scan("causal", "state of 64", "value", state=64),
            _scan("causal", "far", "key", task=FAR),
            _scan("causal", "near", "value", task=NEAR),
            BedArm(
                name="position only, near, value",
                selector="position",
                label="value",
                task=NEAR,
                run={"lrs": (1e-2, 1e-1)},
                scales=(SMALL,),
                control=True,
                quick=False,
            ),
        ),
        note="near is 4 to 20 tokens away, far 40 or more of 64; 500 steps, 1,000 far, at one rate",
    ),
    PaperRow(
        claim="RP2",
        statement="(ours) with fresh data a causal SSM learns the shift that label value needs",
        quoted="(ours; on a fixed set at 200 tokens or more 1.7 % [0.8])",
        published=0.99,
        arms=(
            BedArm(
                name="ssm causal, fresh data, answer first, value",
                flow="ssm:form=causal",
                label="value",
                task={"direction": "before", "min_distance": 6},
                # A fixed set is learned by heart before the shift is found.
                run={"steps": 1500, "lrs": (3e-3,), "train_sequences": 0},
                scales=(SMALL,),
                quick=False,
            ),
        ),
        note="6 tokens away or more, 1,500 steps at one rate",
    ),
    PaperRow(
        claim="RP9",
        statement="(ours) a bidirectional SSM routes with a state of 4",
        quoted="(ours; state of the 99.5 % [1.6] unknown)",
        published=0.995,
        arms=(_scan("both", "state of 4", "key", state=4),),
        note="500 steps at one rate; its larger states and other distances were not run",
    ),
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
        statement="(ours) two hops, eight labelled rows a sequence: a shift before one attention layer routes",
        quoted="(ours)",
        published=0.99,
        arms=(
            _hops("attention:taps=2", "shift and attention"),
            _hops("attention:layers=2", "two attention layers", control=True),
            _hops("attention", "attention", control=True),
            _hops("shift", "shift", control=True),
        ),
        note="fresh data, 4,000 steps at one rate, width 64",
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
