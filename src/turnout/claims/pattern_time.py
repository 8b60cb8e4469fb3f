"""TH6: patterns at equal measured time: each trains for as many steps as dense attention's milliseconds pay for."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from typing import Any

from turnout.claims.discovered import DISCOVERED, UNIFORM
from turnout.claims.patterns import GROUP, SOURCE, excess, far_minus_near, text_arms, words
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.claims.store import read_json, results_dir
from turnout.stats import mean_interval

# Arms are timed in turn, in another order every round; a turn is two intervals of logging, of which the second counts.
ROUNDS, WARM_INTERVALS = 7, 2
EQUAL = ", equal time"
KEY = (
    "forgetting", "ALiBi", "learned constant decay", "fixed decay", "window 64", "sinks + window 64", "dilated",
    "KERPLE", DISCOVERED, UNIFORM,
)  # fmt: skip


def measure(device: str) -> dict[str, Any]:
    """Milliseconds of a training step of every pattern that has an arm; nothing else should run beside it.

    All are captured first; one measured beside the compilation of the others once came out 40 % too slow.
    """
    from turnout.train.loop import Trainer, pick_device
    from turnout.train.manifest import device_name

    trainers = {
        arm.name: Trainer(replace(arm.config(0), device=device))
        for arm in text_arms() if arm.name in ("dense", *KEY)
    }  # fmt: skip
    for trainer in trainers.values():
        turn(trainer)
    rounds: dict[str, list[float]] = {name: [] for name in trainers}
    shuffle = random.Random(0)
    for _ in range(ROUNDS):
        for name in shuffle.sample(list(trainers), len(trainers)):
            rounds[name].append(turn(trainers[name]))
    return {**summed(rounds), "rows": [], "device_name": device_name(pick_device(device))}


def turn(trainer: Any) -> float:
    """Train for two intervals of logging, as far as the schedule goes; milliseconds of a step of the last one."""
    trainer.train(stop_after=trainer.step_count + WARM_INTERVALS * trainer.config.loop.log_every)
    return float(trainer.last_ms)


def summed(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """The median of each arm's rounds, and the rounds."""
    return {"ms": {name: statistics.median(times) for name, times in rounds.items()}, "rounds": rounds}


def step_times() -> dict[str, float]:
    """Committed milliseconds a step, of the GPU where there are some."""
    folder = results_dir() / "runs" / "TH6"
    found = read_json(folder / "bench-cuda.json") or read_json(folder / "bench-cpu.json") or {}
    times: dict[str, float] = found.get("ms", {})
    return times


def arms() -> list[Arm]:
    """Arms that were timed, with TH1's steps and with as many as dense attention's time pays for."""
    ms, found = step_times(), list[Arm]()
    for arm in text_arms():
        if arm.name == "dense":
            found.append(replace(arm, owner="TH1"))
        elif arm.name in KEY and {arm.name, "dense"} <= ms.keys():
            found += [replace(arm, owner="TH1"), _longer(arm, ms["dense"] / ms[arm.name])]
    return found


def _longer(arm: Arm, factor: float) -> Arm:
    def config(seed: int) -> Any:
        run = arm.config(seed)
        # Whole intervals of logging.
        every = run.loop.log_every
        steps = max(every, round(run.schedule.steps * factor / every) * every)
        return replace(run, schedule=replace(run.schedule, steps=steps))

    return replace(arm, name=arm.name + EQUAL, config=config)


def _told(bench: dict[str, Any], name: str) -> str:
    """Milliseconds of a step, and from where to where its rounds went."""
    rounds = bench.get("rounds", {}).get(name)
    spread = f" ({min(rounds):.2f} to {max(rounds):.2f} in {len(rounds)} rounds)" if rounds else ""
    return f"{bench['ms'].get(name, float('nan')):.2f} ms{spread}"


def judge(seen: Summaries) -> list[Finding]:
    """Is a pattern ahead of dense attention after the same milliseconds?

    And of those whose steps take no longer: after the same steps? More steps, which the same time would pay for, only
    add to that.
    """
    bench: dict[str, Any] = next(iter(seen.get("bench", [])), {"ms": {}})
    ms, findings = bench["ms"], list[Finding]()
    for name in (name for name in KEY if "dense" in seen and name + EQUAL in seen):
        findings.append(_beside_dense(seen, bench, name, name + EQUAL, "as many milliseconds of training"))
    for name in (name for name in KEY if "dense" in seen and name in seen):
        share = ms.get(name, float("inf")) / ms.get("dense", float("nan"))
        if share <= 1:
            words_ = f" in {100 * share:.0f} % of the time"
            findings.append(_beside_dense(seen, bench, name, name, "the same steps, in no more time", words_))
    return findings


def _beside_dense(
    seen: Summaries, bench: dict[str, Any], name: str, arm: str, after: str, in_time: str = ""
) -> Finding:
    """What the runs of `arm` gain on dense attention: in all, by domain, position and distance of the evidence."""
    dense = {r["seed"]: r["loss"] for r in seen["dense"]}
    gains = [dense[r["seed"]] - r["loss"] for r in seen[arm] if r["seed"] in dense]
    mean, half = mean_interval(gains)
    places, far = excess(seen, arm, "position"), far_minus_near(excess(seen, arm, "evidence"))
    told = [f"{k} {words(v, '', sign=True)}" for k, v in sorted(excess(seen, arm, "domain").items())]
    told += [f"from position {k} {words(places[k], '', sign=True)}" for k in ("64", "512") if k in places]
    told += [f"evidence 256 tokens or more away minus below 32 {words(far, '', sign=True)}"] if far else []
    return Finding(
        statement=f"{name}: a lower loss than dense attention after {after}",
        quoted="(ours) equal measured cost",
        measured=words(gains, "nats/byte lower", sign=True) + in_time,
        n=len(gains),
        interval=f"± {half:.4f}",
        control=f"dense {words(list(dense.values()))}",
        verdict="holds" if mean - half > 0 else "does not hold",
        detail=f"{seen[arm][0]['steps']} steps of {_told(bench, name)} against "
        f"{seen['dense'][0]['steps']} of {_told(bench, 'dense')}; beside dense: " + "; ".join(told),
    )


claim(
    Claim(id="TH6", source=SOURCE, title="patterns at equal measured training time", arms=arms, judge=judge,
          bench=measure, seeds=3, group=GROUP)
)  # fmt: skip
