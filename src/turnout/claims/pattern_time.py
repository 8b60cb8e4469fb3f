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
    """Is a pattern ahead of dense attention after the same milliseconds?"""
    bench: dict[str, Any] = next(iter(seen.get("bench", [])), {"ms": {}})
    findings = []
    for name in (name for name in KEY if name + EQUAL in seen and "dense" in seen):
        arm = name + EQUAL
        dense = {r["seed"]: r["loss"] for r in seen["dense"]}
        gains = [dense[r["seed"]] - r["loss"] for r in seen[arm] if r["seed"] in dense]
        mean, half = mean_interval(gains)
        parts = excess(seen, arm, "domain")
        far = far_minus_near(excess(seen, arm, "evidence"))
        findings.append(
            Finding(
                statement=f"{name}: a lower loss than dense attention after as many milliseconds of training",
                quoted="(ours) equal measured cost",
                measured=words(gains, "nats/byte lower", sign=True),
                n=len(gains),
                interval=f"± {half:.4f}",
                control=f"dense {words(list(dense.values()))}",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"{seen[arm][0]['steps']} steps of {_told(bench, name)} against "
                f"{seen['dense'][0]['steps']} of {_told(bench, 'dense')}; beside dense: "
                + "; ".join(f"{k} {words(v, '', sign=True)}" for k, v in sorted(parts.items()))
                + (f"; evidence 256 tokens or more away minus below 32 {words(far, '', sign=True)}" if far else ""),
            )
        )
    return [*findings, *_sooner(seen, bench)]


def _sooner(seen: Summaries, bench: dict[str, Any]) -> list[Finding]:
    """Patterns whose steps take no longer than dense attention's: is what they reach in the same steps lower?

    More steps, which the same time would pay for, only add to it.
    """
    findings, ms = [], bench["ms"]
    for name in (n for n in KEY if n in seen and "dense" in seen and ms.get(n, float("inf")) <= ms.get("dense", 0.0)):
        dense = {r["seed"]: r["loss"] for r in seen["dense"]}
        gains = [dense[r["seed"]] - r["loss"] for r in seen[name] if r["seed"] in dense]
        mean, half = mean_interval(gains)
        domains, places = excess(seen, name, "domain"), excess(seen, name, "position")
        far = far_minus_near(excess(seen, name, "evidence"))
        told = [f"{k} {words(v, '', sign=True)}" for k, v in sorted(domains.items())]
        told += [f"from position {k} {words(places[k], '', sign=True)}" for k in ("64", "512") if k in places]
        told += [f"evidence 256 tokens or more away minus below 32 {words(far, '', sign=True)}"] if far else []
        findings.append(
            Finding(
                statement=f"{name}: a lower loss than dense attention after the same steps, in no more time",
                quoted="(ours) equal measured cost",
                measured=words(gains, "nats/byte lower", sign=True)
                + f" in {100 * ms[name] / ms['dense']:.0f} % of the time",
                n=len(gains),
                interval=f"± {half:.4f}",
                control=f"dense {words(list(dense.values()))}",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"{seen[name][0]['steps']} steps of {_told(bench, name)} against "
                f"{_told(bench, 'dense')}; beside dense: " + "; ".join(told),
            )
        )
    return findings


claim(
    Claim(id="TH6", source=SOURCE, title="patterns at equal measured training time", arms=arms, judge=judge,
          bench=measure, seeds=3, group=GROUP)
)  # fmt: skip
