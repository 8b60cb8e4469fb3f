"""Runs that differ only in their seed form a group; groups are what a comparison compares."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.palette import PALETTE, Ink, assign, base_name, ink
from turnout.report.run import Run, flatten, number
from turnout.stats import Estimate, mean_over_seeds

LEARNED = frozenset({"linear", "mlp", "ema", "threshold", "expert_choice", "routed"})
_SEED_OPTION = re.compile(r"(?<=[:,])seed=\d+,?|,seed=\d+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The seeds of one mechanism on one task.

    Attributes:
        task: kind of the task.
        length: tokens per sequence, or None.
        label: what figures call it.
        runs: one per seed.
        ink: its colour and marker.
        var: CSS expression of its colour.
        learned: does a learned router decide here?
    """

    task: str
    length: int | None
    label: str
    runs: tuple[Run, ...]
    ink: Ink
    var: str
    learned: bool

    def estimate(self, key: str) -> Estimate:
        """Mean and interval of a closing number over the seeds; accuracies know how many answers they rest on."""
        values = [run.final(key) for run in self.runs]
        trials = [run.final("n_eval") for run in self.runs] if key == "accuracy" else None
        return mean_over_seeds(values, proportion_of=trials)

    @property
    def is_text(self) -> bool:
        """Is this task judged by its loss?"""
        return self.runs[0].is_text


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups by (task, length, label), in order of first appearance.

    Runs with one label whose configurations differ in more than the seed are told apart by the settings that differ.
    """
    lengths: dict[str, set[int | None]] = {}
    for run in runs:
        lengths.setdefault(run.task, set()).add(run.length)
    labels = _labels(runs)
    members: dict[tuple[str, int | None, str], list[Run]] = {}
    for run, label in zip(runs, labels, strict=True):
        members.setdefault((run.task, run.length, label), []).append(run)
    inks = assign((label, _palette_names(found[0])) for (_, _, label), found in members.items())
    order = {label: i for i, label in enumerate(inks)}
    groups = []
    for (task, length, label), found in members.items():
        shown = f"{label}, T={length}" if len(lengths[task]) > 1 and length else label
        groups.append(
            Group(
                task=task,
                length=length,
                label=shown,
                runs=tuple(found),
                ink=inks[label],
                var=f"var(--g{order[label]})",
                learned=_palette_names(found[0])[0] in LEARNED,
            )
        )
    return groups


def colour_variables(groups: Sequence[Group]) -> tuple[dict[str, str], dict[str, str]]:
    """CSS variables of the groups' colours and of every palette entry, for a light and for a dark page."""
    light = {f"--m-{name}": entry.light for name, entry in PALETTE.items()}
    dark = {f"--m-{name}": entry.dark for name, entry in PALETTE.items()}
    for group in groups:
        name = group.var.removeprefix("var(").removesuffix(")")
        light[name], dark[name] = group.ink.light, group.ink.dark
    return light, dark


def arm_ink(arm: str, run: Run) -> tuple[str, Ink]:
    """CSS colour and ink of an arm of the savings: the routed arm has its router's colour."""
    name = base_name(arm)
    if name == "routed" and base_name(run.router) in PALETTE:
        name = base_name(run.router)
    if name == "this":
        name = base_name(run.arm)
    if name in PALETTE:
        return f"var(--m-{name})", PALETTE[name]
    return ink(name).light, ink(name)


def provenance(runs: Sequence[Run], *, sample: str = "") -> str:
    """n, seeds, device and commit of the runs behind a figure: the end of every caption.

    Args:
        sample: words for n where it is not the number of evaluated targets.
    """
    sizes = sorted({int(size) for run in runs if not math.isnan(size := run.final("n_eval"))})
    shown = " to ".join(f"{size:,}" for size in dict.fromkeys(sizes[:1] + sizes[-1:]))
    seeds = sorted({run.seed for run in runs}, key=lambda seed: (len(seed), seed))
    seed_words = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"
    devices = " and ".join(sorted({run.device for run in runs}))
    commits = " and ".join(sorted({run.commit for run in runs}))
    many = f"{len(runs)} runs · " if len(runs) > 1 else ""
    n = f"n = {shown} evaluated targets" if shown else "n unknown"
    n = sample or n
    return f"{many}{n} · {seed_words} · {devices} · commit {commits}"


def _labels(runs: Sequence[Run]) -> list[str]:
    """One label per run; settings are added where one label covers different configurations."""
    plain = [_label(run) for run in runs]
    settings = [_settings(run) for run in runs]
    labels = list(plain)
    for family in {(run.task, run.length, label) for run, label in zip(runs, plain, strict=True)}:
        mine = [i for i, run in enumerate(runs) if (run.task, run.length, plain[i]) == family and settings[i]]
        keys = list(dict.fromkeys(key for i in mine for key in settings[i]))
        differing = [key for key in keys if len({settings[i].get(key) for i in mine}) > 1]
        differing.sort(key=lambda key: key != "schedule.kind")
        distinct = len({tuple(settings[i].get(key) for key in differing) for i in mine})
        for n in range(1, len(differing) + 1):
            if len({tuple(settings[i].get(key) for key in differing[:n]) for i in mine}) == distinct:
                for i in mine:
                    parts = [f"{key.rpartition('.')[2]}={settings[i].get(key)}" for key in differing[:n]]
                    labels[i] = f"{plain[i]}, {', '.join(parts)}"
                break
    return labels


def _settings(run: Run) -> dict[str, str]:
    """The configuration, flat, without what may differ between the seeds of one experiment."""
    flat = flatten(run.config)
    return {
        key: _SEED_OPTION.sub("", str(value))
        for key, value in flat.items()
        if key not in ("seed", "name", "device", "threads") and not key.startswith("loop.")
    }


def _label(run: Run) -> str:
    arm = _SEED_OPTION.sub("", run.arm).rstrip(":,")
    router = _SEED_OPTION.sub("", run.router).rstrip(":,")
    shown = arm.replace("_", " ") if arm in PALETTE else arm
    names = _palette_names(run)
    if names[0] == "joint":
        return f"joint ({router})"
    if names[0] == names[-1] or router == "none" or router.startswith("unknown"):
        return shown
    return shown if names[0] in PALETTE and names[0] != "routed" else f"{shown} ({router})"


def _palette_names(run: Run) -> tuple[str, ...]:
    """Names under which the palette may know this run, the telling one first."""
    arm, router = base_name(run.arm), base_name(run.router)
    schedule = run.config.get("schedule")
    pressed = isinstance(schedule, dict) and schedule.get("kind") == "joint" and number(schedule, "cost") > 0
    if (pressed and router in LEARNED) or arm == "joint":
        return "joint", router
    if arm in PALETTE:
        return arm, router
    return (router, arm) if router in LEARNED else (arm, router)
