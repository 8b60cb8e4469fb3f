"""What a claim is: a published number, the runs that re-measure it, and the judgement over their summaries."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from turnout.errors import ConfigError, nearest

VERDICTS = (
    "holds", "holds with changes", "does not hold", "cannot be tested as published", "too few seeds", "not measured",
)  # fmt: skip
Summaries = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way of running a claim's experiment.

    Args:
        name: of the arm, as results and tables show it.
        config: seed -> RunConfig; imported lazily, so that listing claims needs no torch.
        control: True for what the learned arm is compared with.
        owner: id of the claim whose runs these are, when several claims read the same runs.
        together: (configs of several seeds, device) -> one record a seed, for runs that train as one stacked model.
        when: "always", or only in "quick" or only in "full" reproductions; anything else is run by its name alone
            (`reproduce.run_arm`), because it takes hours.
        after: (trainer that has finished) -> what it adds to the record; imported lazily.
        costs: True also measures train step, prefill and decode beside dense attention, static hybrid and local track.
    """

    name: str
    config: Callable[[int], Any]
    control: bool = False
    owner: str = ""
    together: Callable[[list[Any], str], list[dict[str, Any]]] | None = None
    when: str = "always"
    costs: bool = False
    after: Callable[[Any], dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The judgement: one row of the claims table.

    Attributes:
        statement: what is claimed (by the source, or by this library on the source's behalf).
        quoted: the source's number, as printed there.
        measured: ours, in words with numbers.
        n: seeds behind it.
        interval: 95 % interval, in words.
        control: the control's number.
        verdict: one of `VERDICTS`.
        detail: seed by seed, layer by layer: what a table has no room for.
    """

    statement: str
    quoted: str
    measured: str
    n: int
    interval: str
    control: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A published number and how it is re-measured.

    Args:
        id: "RA1", ...; `source`: where it was published; `title`: in a few words.
        arms: () -> the runs; empty for claims measured by `bench`.
        judge: summaries by arm -> findings (rows of the table).
        bench: device -> one record, for claims that are timings and not runs.
        seeds: how many a full reproduction uses.
        least_seeds: a finding with fewer gets the verdict "too few seeds", whatever its numbers say.
        group: name under which several claims are reproduced together.
    """

    id: str
    source: str
    title: str
    judge: Callable[[Summaries], list[Finding]]
    arms: Callable[[], list[Arm]] = field(default=lambda: [])
    bench: Callable[[str], dict[str, Any]] | None = None
    seeds: int = 5
    least_seeds: int = 3
    group: str = ""


CLAIMS: dict[str, Claim] = {}


def claim(entry: Claim) -> Claim:
    """Enter a claim into the registry."""
    if entry.id in CLAIMS:
        raise ConfigError(f"claim {entry.id} is registered twice")
    CLAIMS[entry.id] = entry
    return entry


def load_claims() -> dict[str, Claim]:
    """All claims by id; imports every module of this package once, but those that train (`*_runs`): torch is slow."""
    package = importlib.import_module("turnout.claims")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.endswith("_runs"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return CLAIMS


def get_claim(claim_id: str) -> Claim:
    """The claim of that id; ConfigError names the nearest."""
    claims = load_claims()
    if claim_id not in claims:
        raise ConfigError(f"unknown claim {claim_id!r}{nearest(claim_id, claims)}")
    return claims[claim_id]


def find_claims(words: list[str]) -> list[Claim]:
    """The claims of those ids, in order; the name of a group, or the letters that ids begin with, stand for several.

    Raises:
        ConfigError: a word means nothing (names the nearest id or group).
    """
    claims = load_claims()
    groups = {entry.group for entry in claims.values()} - {""}
    found: dict[str, Claim] = {}
    for word in words:
        members = [entry for entry in claims.values() if entry.group == word]
        if not members and word not in claims:
            # RA means RA1 to RA6; RP1 is one claim, although RP10 begins with it.
            members = [entry for entry in claims.values() if entry.id.rstrip("0123456789") == word]
        if not members and word not in claims:
            raise ConfigError(f"unknown claim {word!r}{nearest(word, [*claims, *groups])}")
        found |= {entry.id: entry for entry in members or [claims[word]]}
    return list(found.values())
