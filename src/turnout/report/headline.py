"""The headline: what was learnt, in one sentence with numbers, and the table of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.controls import equal_usage
from turnout.report.groups import Group
from turnout.report.numbers import (
    MISSING,
    count,
    duration,
    exact_percent,
    interval,
    milliseconds,
    percent,
    plural,
    ratio,
)
from turnout.report.palette import base_name
from turnout.report.run import Run, lookup, number
from turnout.report.savings import step_ratio
from turnout.stats import wilson

# At or above this accuracy the headline says "learnt".
LEARNT = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A number with its name and one line of context."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """A line of the table of runs."""

    name: str
    label: str
    var: str
    task: str
    accuracy: str
    loss: str
    usage: str
    gates: str
    steps: str
    time: str
    seed: str
    device: str
    commit: str


def chance_level(run: Run) -> float:
    """Accuracy of a guess: from the summary or manifest, else from the task's config; NaN when it has none."""
    for source in (run.summary, run.manifest, run.config.get("task")):
        value = number(source, "chance")
        if not math.isnan(value):
            return value
    task = run.config.get("task")
    if not isinstance(task, dict) or run.is_text:
        return math.nan
    return _chance_of(task)


def headline(run: Run) -> str:
    """One sentence: quality with n and chance, usage in per cent and gates, time against dense."""
    quality = _quality_words(run)
    return f"{_subject(run)} {quality}{_usage_words(run)}{_time_words(run)}."


def comparison_headline(groups: Sequence[Group]) -> str:
    """One sentence per task: each learned router, its controls at equal usage, and the rest."""
    sentences = []
    for task in dict.fromkeys(group.task for group in groups):
        mine = [group for group in groups if group.task == task]
        parts, named = [], set()
        for group in (group for group in mine if group.learned):
            equal = equal_usage(group, mine)
            beside = ", ".join(f"{other.label} {_quality_of(other)}" for other in equal)
            parts.append(f"{_group_words(group)}" + (f", against {beside} at equal usage" if equal else ""))
            named |= {other.label for other in [group, *equal]}
        parts += [_group_words(group) for group in mine if group.label not in named]
        shown = parts[:6] + ([f"and {len(parts) - 6} more below"] if len(parts) > 6 else [])
        start = _task_words(mine[0].runs[0]) if len({group.length for group in mine}) == 1 else _task_name(task)
        counts = {len(group.runs) for group in mine}
        seeds = plural(min(counts), "seed") if len(counts) == 1 else f"{min(counts)} to {max(counts)} seeds"
        sentences.append(f"{start[:1].upper()}{start[1:]}: {'; '.join(shown)} ({seeds} each).")
    return " ".join(sentences)


def tiles(run: Run) -> list[Tile]:
    """Four numbers that the sentence holds, large."""
    accuracy, n = run.final("accuracy"), run.final("n_eval")
    low, high = wilson(accuracy, 0 if math.isnan(n) else int(n))
    chance = chance_level(run)
    found = []
    if run.is_text:
        loss = run.final("loss")
        bits = MISSING if math.isnan(loss) else f"{loss / math.log(2):.3f} bits per token"
        found.append(
            Tile(
                name="Validation loss",
                value=MISSING if math.isnan(loss) else f"{loss:.4f}",
                note=f"nats per token; {bits}",
            )
        )
    else:
        against = "" if math.isnan(chance) else f"; chance {exact_percent(chance)}"
        ends = interval(low, high)
        note = f"95 % interval {ends}{against}" if ends != MISSING else f"n unknown{against}"
        found.append(Tile(name="Accuracy", value=percent(accuracy), note=note))
    found.append(Tile(name="Usage", value=percent(run.final("usage")), note="of the attention slots open"))
    slots = _slots(run)
    of = f"of {slots:,} slots per sequence" if slots else "per sequence"
    found.append(Tile(name="Open gates", value=count(run.final("gates_per_seq")), note=of))
    found.append(_time_tile(run))
    return found


def run_rows(groups: Sequence[Group]) -> list[RunRow]:
    """The table of runs, group by group."""
    rows = []
    for group in groups:
        for run in group.runs:
            loss = run.final("loss")
            rows.append(
                RunRow(
                    name=run.name,
                    label=group.label,
                    var=group.var,
                    task=f"{run.task}, T={run.length:,}" if run.length else run.task,
                    accuracy=percent(run.final("accuracy")),
                    loss=MISSING if math.isnan(loss) else f"{loss:.4f}",
                    usage=percent(run.final("usage")),
                    gates=count(run.final("gates_per_seq")),
                    steps=count(_steps(run)),
                    time=duration(number(run.summary, "train_s")),
                    seed=run.seed,
                    device=str(run.summary.get("device") or run.manifest.get("device") or MISSING),
                    commit=run.commit,
                )
            )
    return rows


def title_of(runs: Sequence[Run]) -> str:
    """Title of the page."""
    if len(runs) == 1:
        return f"{runs[0].name}: {_task_words(runs[0])}"
    tasks = ", ".join(dict.fromkeys(run.task for run in runs))
    return f"{len(runs)} runs compared: {tasks}"


def _subject(run: Run) -> str:
    name = base_name(run.router)
    arm = base_name(run.arm)
    if arm in ("dense", "local", "static_hybrid", "always", "never"):
        who = f"The {arm.replace('_', ' ')} control"
    elif name in ("random", "periodic", "frozen", "shuffled", "oracle"):
        who = f"The {name} control"
    else:
        who = f"The model with the {run.router} router" if not run.router.startswith("unknown") else "The model"
    return who


def _quality_words(run: Run) -> str:
    task = _task_words(run)
    n = run.final("n_eval")
    of_n = f" of {n:,.0f}" if not math.isnan(n) else ""
    accuracy, loss, chance = run.final("accuracy"), run.final("loss"), chance_level(run)
    if run.is_text:
        if math.isnan(loss):
            return f"has no evaluation on {task} yet"
        return f"reaches {loss:.4f} nats per token ({loss / math.log(2):.3f} bits) on held-out {task}"
    if math.isnan(accuracy):
        return f"has no evaluation on {task} yet"
    guess = f" (chance {exact_percent(chance)})" if not math.isnan(chance) else ""
    low, _ = wilson(accuracy, 0 if math.isnan(n) else int(n))
    verb = "learnt" if accuracy >= LEARNT else "partly learnt" if low > 2 * chance else "did not learn"
    return f"{verb} {task}: it answers {percent(accuracy)}{of_n} held-out queries right{guess}"


def _usage_words(run: Run) -> str:
    usage, gates, slots = run.final("usage"), run.final("gates_per_seq"), _slots(run)
    if math.isnan(usage):
        return ""
    detail = ""
    if not math.isnan(gates) and slots:
        detail = f" ({count(gates)} of {slots:,} gates per sequence)"
    return f" with attention open at {percent(usage)} of its slots{detail}"


def _time_words(run: Run) -> str:
    found = step_ratio(run)
    if found:
        relative, routed, dense = found
        cost = f"{ratio(relative)} the time of a dense one ({milliseconds(routed)} against {milliseconds(dense)})"
        return (
            f", and a routed training step takes {cost}"
            if relative < 1
            else f"; here routing does not pay: a training step takes {cost}"
        )
    dense_ms, skipping_ms = number(run.summary, "ms_per_step_dense"), number(run.summary, "ms_per_step_skipping")
    if math.isnan(dense_ms) or math.isnan(skipping_ms):
        return ""
    both = f"took {milliseconds(dense_ms)} with both tracks"
    return f"; a training step takes {milliseconds(skipping_ms)} while it skips and {both}"


def _time_tile(run: Run) -> Tile:
    found = step_ratio(run)
    if found:
        relative, routed, dense = found
        return Tile(
            name="Training step",
            value=ratio(relative),
            note=f"the time of dense: {milliseconds(routed)} against {milliseconds(dense)}",
        )
    dense_ms, skipping_ms = number(run.summary, "ms_per_step_dense"), number(run.summary, "ms_per_step_skipping")
    if not math.isnan(dense_ms) and not math.isnan(skipping_ms) and dense_ms > 0:
        note = f"skipping against both tracks: {milliseconds(skipping_ms)} and {milliseconds(dense_ms)}"
        return Tile(name="Training step", value=ratio(skipping_ms / dense_ms), note=note)
    return Tile(name="Training step", value=MISSING, note="not timed against dense")


def _group_words(group: Group) -> str:
    return f"{group.label} {_quality_of(group)} at {percent(group.estimate('usage').mean)} usage"


def _quality_of(group: Group) -> str:
    if not group.is_text:
        return percent(group.estimate("accuracy").mean)
    loss = group.estimate("loss").mean
    return MISSING if math.isnan(loss) else f"{loss:.4f} nats per token"


def _task_words(run: Run) -> str:
    if run.length is None:
        return _task_name(run.task)
    if run.task == "recall":
        return f"recall over a distance of {run.length - 2:,} tokens"
    pairs = lookup(run.config.get("task"), "pairs")
    extra = f", {pairs} pairs" if pairs else ""
    return f"{_task_name(run.task)} at T={run.length:,}{extra}"


def _task_name(task: str) -> str:
    return "hard recall" if task == "recall_hard" else task.replace("_", " ")


def _slots(run: Run) -> int:
    if run.gates:
        return run.gates.layers * run.gates.length * run.gates.groups
    usage, gates = run.final("usage"), run.final("gates_per_seq")
    if run.length and run.routed_layers and not usage > 0:
        return len(run.routed_layers) * run.length
    return round(gates / usage) if usage > 0 and not math.isnan(gates) else 0


def _steps(run: Run) -> float:
    steps = number(run.summary, "steps")
    if math.isnan(steps):
        steps = max((number(line, "step") for line in [*run.train, *run.evals]), default=math.nan)
    return steps


def _chance_of(task: dict[str, object]) -> float:
    from turnout.config import from_dict
    from turnout.errors import ConfigError
    from turnout.tasks import task_kinds

    kind = task_kinds().get(str(task.get("kind")))
    if kind is None:
        return math.nan
    try:
        return number({"chance": getattr(from_dict(kind, task), "chance", None)}, "chance")
    except ConfigError:
        # A run of another version may know keys that this one does not; then the chance line is left out.
        return math.nan
