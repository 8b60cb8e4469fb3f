"""The routing paradox (arXiv 2603.20997 v2): what a row and an arm of its table are; `routing_rows.py` has the table.

Two scales. "small" (T = 64, width 32, 800 steps) trains on a CPU; "full" (T = 512, width 128) is the published size on
a GPU. Both sweep the learning rate and read the label both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from turnout.models.testbed_config import TestBedConfig
from turnout.tasks import RetrievalConfig, TrailingMQARConfig
from turnout.train.stacked_config import BedRunConfig

SMALL, FULL = "T=64", "T=512"
SCALES = (SMALL, FULL)
# Ten epochs: the study's jump is in the tenth, and in runs of 4,000 steps no curve that rose still did after 2,000.
FULL_STEPS = 2500
# What is dear at the published size trains at fewer rates: a bidirectional scan costs ten token shifts.
SHORTER: dict[str, dict[str, Any]] = {
    "attention": {"lrs": (3e-4, 1e-3, 3e-3)},
    "perceiver": {"lrs": (3e-4, 1e-3, 3e-3)},
    "ssm": {"steps": 2000, "lrs": (1e-3, 3e-3)},
}
# The same flows at the small size: what they solve, they solve at these two rates as well as at any other.
DEAR_SMALL: dict[str, Any] = {"lrs": (3e-3, 1e-2)}
# What is solved at all is solved within 600 steps at these rates.
BRIEF: dict[str, Any] = {"steps": 1500, "lrs": (1e-3, 3e-3)}


@dataclass(frozen=True, kw_only=True, slots=True)
class BedArm:
    """One mechanism on one reading of the task.

    Args:
        name: unique in its claim, without the scale.
        flow, selector: specs of the test bed. `{segment}` becomes the segment length: a sixteenth of the sequence.
        label: the evidence is the "key" (neighbour read too) or the "value" (no neighbour).
        task, model, run: further settings; `full`: of the run at the published size.
        scales: where it runs.
        control: what others are compared with.
        quick: False leaves the small size out of quick reproductions.
        by_name: run by its name alone, in no reproduction.
    """

    name: str
    flow: str = "none"
    selector: str = "pairwise"
    label: str = "key"
    task: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    full: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[str, ...] = SCALES
    control: bool = False
    quick: bool = True
    by_name: bool = False
    mqar: bool = False

    def config(self, scale: str, seed: int) -> BedRunConfig:
        """The full run config at one scale."""
        length = 64 if scale == SMALL else 512
        segment = str(length // 16)
        task: RetrievalConfig | TrailingMQARConfig
        if self.mqar:
            task = TrailingMQARConfig(length=64 if scale == SMALL else 256, label=self.label, **self.task)  # type: ignore[arg-type]
        else:
            usual = {"length": length, "label": self.label, "min_distance": 200 * length // 512}
            task = RetrievalConfig(**(usual | dict(self.task)))  # type: ignore[arg-type]
        segments = "{segment}" in self.selector
        bed = {"width": 32 if scale == SMALL else 128, "expand": int(self.label == "key" and not segments)}
        selector = self.selector.replace("{segment}", segment)
        model = TestBedConfig(flow=self.flow, selector=selector, **(bed | dict(self.model)))
        base = BedRunConfig(
            name=f"{self.name}, {scale}", seed=seed, task=task, model=model,
            lrs=(1e-3, 3e-3, 1e-2) if scale == SMALL else (1e-4, 3e-4, 1e-3, 3e-3),
            steps=800 if scale == SMALL else FULL_STEPS, answer=scale == FULL, evaluations=40,
        )  # fmt: skip
        dear = SHORTER.get(self.flow.partition(":")[0], {})
        shorter = dear if scale == FULL else DEAR_SMALL if dear else {}
        return replace(base, **{**shorter, **self.run, **(self.full if scale == FULL else {})})


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One quoted number.

    Args:
        claim: id; rows of one claim share its runs.
        statement: what the study reports.
        quoted: as printed, chance in brackets.
        published: the number, 0..1; None where it was published without what would define it.
        arms: readings, the literal ones first.
        note: what the reader has to know about our reading.
        metric: "precision" of the routing, or "accuracy" of the answers.
        like: name of an arm; what is claimed is that the others find what it finds (their intervals overlap).
    """

    claim: str
    statement: str
    quoted: str
    published: float | None
    arms: tuple[BedArm, ...]
    note: str = ""
    metric: Literal["precision", "accuracy"] = "precision"
    like: str = ""


def both(name: str, **options: Any) -> tuple[BedArm, BedArm]:
    """The arm under both labels."""
    return BedArm(name=f"{name}, key", label="key", **options), BedArm(name=f"{name}, value", label="value", **options)


def frozen_arms(folder: str, bridge: str = "") -> tuple[BedArm, ...]:
    """A frozen language model, alone or behind a trainable `bridge`, with its untrained twin.

    Without a `folder` nothing runs them, and what was measured before is still read.
    """
    model: dict[str, Any] = {"frozen": folder or "frozen", "positions": "none"}
    options: dict[str, Any] = {"flow": bridge or "none", "scales": (SMALL,), "by_name": not folder}
    name = f", {bridge} bridge" if bridge else ""
    twin = BedArm(name=f"untrained twin{name}, key", model=model | {"frozen_twin": True}, control=True, **options)
    return *both(f"frozen model{name}", model=model, **options), *((twin,) if bridge != "shift" else ())


UNTRAINED = {"steps": 0, "lrs": (1e-3,)}
SEGMENT = "segment:size={segment}"
CONTROLS = (
    BedArm(name="identity match, key", selector="exact", run=UNTRAINED, control=True),
    BedArm(name="identity match, value", selector="exact:offset=1", label="value", run=UNTRAINED, control=True),
    BedArm(name="position only, key", selector="position", run={"lrs": (1e-2, 1e-1)}, control=True),
    BedArm(name="position only, value", selector="position", label="value", run={"lrs": (1e-2, 1e-1)}, control=True),
    BedArm(name="frozen random pairwise, key", selector="pairwise:frozen=true", run=UNTRAINED, control=True),
)


def all_rows() -> tuple[PaperRow, ...]:
    """The quoted numbers, and the rungs that the study has not."""
    from turnout.recipes.routing_grids import RUNGS
    from turnout.recipes.routing_ladder import LADDER
    from turnout.recipes.routing_rows import ROWS

    return ROWS + LADDER + RUNGS


def arms_of(claim: str) -> Iterator[tuple[BedArm, str]]:
    """Every (arm, scale) that a claim runs."""
    own: dict[str, BedArm] = {}
    for row in all_rows():
        # Rows may share an arm; the first has all its scales.
        own |= {arm.name: arm for arm in row.arms if row.claim == claim and arm.name not in own}
    for arm in [*own.values(), *(CONTROLS if claim == "RP1" else ())]:
        for scale in arm.scales:
            yield arm, scale
