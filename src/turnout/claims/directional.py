"""DR1-DR12: the numbers of "Directional Routing in Transformers" re-measured, each beside the control that it lacks.

Source: Taylor, arXiv 2603.14923, and the author's article on the same run. All claims read the runs of DR1: eight arms
on the text that TURNOUT_TEXT names, at two sizes (bytes), and at the published size where somebody has run it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnout.claims import directional_rows as rows
from turnout.claims.directional_perplexity import perplexity
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.errors import ConfigError, DataError, nearest
from turnout.recipes.directional import ARMS, ROUTERS, directional_run
from turnout.train.config import JointConfig

SOURCE = "Taylor 2026, Directional Routing in Transformers (arXiv 2603.14923)"
GROUP = "directional-routing"
SCALES = {"cpu": "quick", "gpu": "full", "433m": "by name"}
# 100M tokens, 65,536 a step, five epochs of the corpus: twelve minutes of one GPU an arm. The published run had
# 2.6B, in steps twice as large.
STEPS_433M = 1527
SHORT_433M: dict[str, Any] = {"batch": 64, "accumulate": 1, "lr": 5e-4, "warmup": 150, "compile": True}
LEAST_SEEDS = 3
Judge = Callable[[Summaries], list[Finding]]

# What each claim reads of a study: a record without it (a run that was cut short) says nothing there.
NEEDS = {
    "DR1": ("honest",), "DR2": ("routing",), "DR3": ("routing",), "DR4": ("routing", "layers"), "DR5": ("facts",),
    "DR6": ("attribution",), "DR7": ("heads", "copying"), "DR8": ("copying",), "DR9": ("domains",),
    "DR10": ("regimes",), "DR11": ("steering",), "DR12": ("geometry",),
}  # fmt: skip
TITLES: dict[str, tuple[str, Judge]] = {
    "DR1": ("perplexity 31-56 % lower by domain", perplexity),
    "DR2": ("routing off: perplexity 15 -> 7.7 million", rows.routing_off),
    "DR3": ("static routing r = 0.5: perplexity 5,284", rows.static_half),
    "DR4": ("one layer is worth +42.6 perplexity", rows.one_layer),
    "DR5": ("facts vanish with routing off", rows.recall),
    "DR6": ("the routing delta writes the answer: +25.57", rows.attribution),
    "DR7": ("heads are dispensable", rows.heads),
    "DR8": ("induction 93.4 % -> 0.0 % with routing off", rows.induction),
    "DR9": ("routing tells domains apart: 96 %", rows.domains),
    "DR10": ("two regimes: the first layer varies 127 times as much as the ninth", rows.regimes),
    "DR11": ("directions are words: an article direction lowers P(article) by 6.2 %", rows.steering),
    "DR12": ("layers' directions are orthogonal; 3.9 % more parameters, cost unknown", rows.geometry),
}


def study_trained(trainer: Any) -> dict[str, Any]:
    """What a finished run adds to its record: the whole study, at the size of its model."""
    return _study(trainer.model, trainer.task, trainer.config.seed)


def _study(model: Any, task: Any, seed: int, parts: Collection[str] = ()) -> dict[str, Any]:
    from turnout.probe.directional import StudySize, study

    size = StudySize()
    if model.embed.weight.device.type == "cpu":
        size = StudySize(honest=64, positions=16, sequences=64, texts=96, copies=50, draws=3, questions=64)
    return {"study": study(model, task, size, seed=seed, parts=parts)}


def record_run(
    folder: str | Path, arm: str, *, device: str = "auto", out: str | Path | None = None, parts: Collection[str] = ()
) -> Path:
    """Study a finished run folder and write it down as the record of an arm, "sequence, 433m".

    For runs by several processes: `torchrun --nproc-per-node 4 -m turnout train directional_433m ...`.

    Args:
        out: folder of results; parts: of the study, added to those that the record has; empty = all.
    Raises:
        ConfigError: no arm of that name, or the run is of another model; DataError: the run is not finished.
    """
    import torch

    from turnout.claims.store import from_here, results_dir
    from turnout.config import to_dict
    from turnout.train.jsonfile import read_json, write_json
    from turnout.train.loop import load_model, pick_device
    from turnout.train.manifest import device_name
    from turnout.train.rundir import RunDir

    wanted = next((one for one in arms() if one.name == arm), None)
    if wanted is None:
        raise ConfigError(f"unknown arm {arm!r}{nearest(arm, [one.name for one in arms()])}")
    run = RunDir.open(Path(folder))
    if not run.model_path.exists():
        raise DataError(f"run {run.path} is not finished, so it has no trained weights; resume it")
    model, config, task = load_model(run)
    if config.model != wanted.config(config.seed).model:
        raise ConfigError(f"run {run.path} is another model than arm {arm!r}; train it with that arm's recipe")
    where = pick_device(device)
    if where.type == "cuda" and config.optim.precision != "fp32":
        # Rounding of 1e-3 a product, less than the bf16 that it was trained in, at several times the speed of fp32.
        torch.set_float32_matmul_precision("high")
    root = Path(out) if out is not None else results_dir()
    path = root / "runs" / "DR1" / f"{arm}-{config.seed}.json"
    before = read_json(path)["study"] if parts and path.exists() else {}
    record = {
        **(run.summary() or {}), **_training(run, config),
        "config": from_here(to_dict(config)), "claim": "DR1", "arm_name": arm, "seed": config.seed,
        "device_name": device_name(where), "study": before | _study(model.to(where), task, config.seed, parts)["study"],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


def _training(run: Any, config: Any) -> dict[str, Any]:
    """How a run was trained: tokens, the pace (upper quartile: other work on its GPUs only slows) and on how many GPUs,
    and some points of its curve."""
    lines = run.metrics("train")
    if not lines:
        return {}
    paces = sorted(line["tokens_per_s"] for line in lines)
    shown = lines[:: max(1, len(lines) // 80)]
    return {
        "tokens": lines[-1]["step"] * config.optim.batch * config.optim.accumulate * config.task.length,
        "tokens_per_s": paces[3 * len(paces) // 4], "gpus": run.read_json("manifest.json").get("processes", 1),
        "curve": [[line["step"], round(line["loss"], 4)] for line in shown],
    }  # fmt: skip


def arms(owner: str = "") -> list[Arm]:
    """Eight arms at each scale, "prefix, gpu"; `owner` is set by the claims that only read them."""

    def one(name: str, scale: str) -> Arm:
        def config(seed: int) -> Any:
            run = directional_run(scale, name, seed=seed)
            if scale != "433m":
                return run
            return replace(run, schedule=JointConfig(steps=STEPS_433M), optim=replace(run.optim, **SHORT_433M))

        control = name not in ("sequence", "prefix")
        return Arm(
            name=f"{name}, {scale}", config=config, control=control, owner=owner, when=SCALES[scale],
            after=study_trained,
        )  # fmt: skip

    return [one(name, scale) for scale in SCALES for name in ARMS]


def _judge(judge: Judge, needs: tuple[str, ...]) -> Judge:
    routed = {"routing", "layers", "regimes", "steering", "geometry"} & set(needs)

    def by_scale(seen: Summaries) -> list[Finding]:
        found: list[Finding] = []
        for scale in SCALES:
            own: Summaries = {}
            for name in ARMS:
                records = seen.get(f"{name}, {scale}", [])
                asked = needs if name in ROUTERS or not routed else ()
                complete = [r for r in records if all(part in r["study"] for part in asked)]
                own |= {name: complete} if complete else {}
            found += [replace(f, statement=f"{f.statement} ({scale})") for f in judge(own)]
        # A claim that also has a benchmark is not asked for seeds by `judge`; its runs are.
        found = [replace(f, verdict="too few seeds") if f.n < LEAST_SEEDS else f for f in found]
        return found + (rows.costs(seen["bench"]) if judge is rows.geometry and "bench" in seen else [])

    return by_scale


def _bench(device: str) -> dict[str, Any]:
    from turnout.bench.directions import measure_directions

    return measure_directions(device)


for _id, (_title, _rows) in TITLES.items():
    _entry = Claim(
        id=_id, source=SOURCE, title=_title, group=GROUP, seeds=3, judge=_judge(_rows, NEEDS[_id]),
        arms=arms if _id == "DR1" else lambda: arms("DR1"), bench=_bench if _id == "DR12" else None,
    )  # fmt: skip
    claim(_entry)
