"""Synthetic run folders with the shape of real ones: what the training code writes, without training.

The curves follow what routed attention does: usage is high while the model explores, then whole layers close, then a
few positions stay open.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASE_ENDS = {"explore": 0.3, "ramp": 0.7, "hold": 1.01}
WIDTH, KERNEL = 128, 16
LOCAL = f"conv:kernel={KERNEL}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = (
    "The signalman walked the length of the platform and looked at the points again.\n\n"
    '"If the turnout is set for the branch," he said, "the express will go that way too, and it will not come back."\n'
    "Nobody answered. The branch had been closed for years; the rails were brown, and grass grew between the sleepers. "
    "He put his hand on the lever, felt how cold it was, and waited for the bell. At 10:42 it rang twice.\n"
)


@dataclass(frozen=True, kw_only=True)
class Fake:
    """What to fake. `final_usage` and `final_quality` are where the curves end (accuracy, or loss for text).

    `layout` has one letter a layer or one for all: R routed, A attention, L local, as in the model's configuration.
    """

    name: str = "demo"
    task: str = "recall"
    router: str = "linear"
    layout: str = "R"
    schedule: str = "curriculum"
    seed: int = 0
    length: int = 128
    layers: int = 4
    steps: int = 2000
    final_usage: float = 0.0021
    final_quality: float = 1.0
    timed_lengths: tuple[int, ...] = ()


def write_fake_run(folder: Path, fake: Fake | None = None) -> Path:
    """Write a complete run folder and return it."""
    fake = fake or Fake()
    draw = random.Random(f"{fake.seed} {fake.router} {fake.name}")
    (folder / "gates").mkdir(parents=True)
    _dump(folder / "manifest.json", _manifest(fake))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _metrics(fake, draw)))
    shots = [_gates(fake, round(fake.steps * share), draw) for share in (0.1, 0.3, 0.5, 0.6, 0.8, 1.0)]
    for shot in shots:
        _dump(folder / "gates" / f"step-{shot['step']:06d}.json", shot)
    _dump(folder / "gates" / "final.json", shots[-1])
    _dump(
        folder / "savings.json",
        {
            "device": "Generic 2-core CPU",
            "threads": 2,
            "energy": "energy counter of the CPU packages (RAPL)",
            "rows": _savings(fake, draw),
        },
    )
    _dump(folder / "summary.json", _summary(fake, folder))
    return folder


def fake_family(root: Path, *, seeds: int = 3) -> list[Path]:
    """A learned router and its controls on recall, a few seeds each."""
    # name, router, layout, schedule, usage, accuracy
    arms: Sequence[tuple[str, str, str, str, float, float]] = (
        ("linear", "linear", "R", "curriculum", 0.0041, 1.0),
        ("random", "random:p=0.004,seed={seed}", "R", "curriculum", 0.0040, 0.012),
        ("frozen", "frozen", "R", "curriculum", 0.0042, 0.03),
        ("oracle", "oracle", "R", "curriculum", 0.0039, 1.0),
        ("joint", "linear", "R", "joint", 0.0, 0.0104),
        ("hybrid", "linear", "AL", "curriculum", 0.0, 0.998),
        ("dense", "linear", "A", "curriculum", 0.0, 1.0),
        ("local", "linear", "L", "curriculum", 0.0, 0.0098),
    )
    folders = []
    for arm, router, layout, schedule, usage, quality in arms:
        for seed in range(seeds):
            shaken = min(1.0, quality * (1 + 0.15 * (seed - 1) * (quality < 0.99)))
            fake = Fake(
                name=f"{arm}-{seed}", router=router.format(seed=seed), layout=layout, schedule=schedule, seed=seed,
                layers=2, steps=400, final_usage=usage, final_quality=shaken,
            )  # fmt: skip
            folders.append(write_fake_run(root / fake.name, fake))
    return folders


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _manifest(fake: Fake) -> dict[str, Any]:
    task: dict[str, Any] = {"kind": fake.task, "length": fake.length}
    task |= {"path": "data/novel.txt", "tokenizer": "bytes"} if fake.task == "text" else {"vocab": 256}
    schedule: dict[str, Any] = {"kind": fake.schedule, "penalty": "per_gate", "cost": 0.02}
    if fake.schedule == "budget":
        schedule = {"kind": "budget", "usage": fake.final_usage, "steps": fake.steps}
    routing = {"router": fake.router or "linear", "noise": "none", "granularity": "token"}
    config = {
        "name": fake.name, "seed": fake.seed, "device": "auto", "threads": 0, "task": task,
        "model": {"layers": fake.layers, "width": WIDTH, "layout": fake.layout, "local": LOCAL, "routing": routing},
        "schedule": schedule, "optim": {"batch": 32, "lr": 1e-3}, "loop": {"log_every": 10},
    }  # fmt: skip
    return {
        "name": fake.name, "created": "2026-03-01T12:00:00Z", "config": config, "seed": fake.seed, "device": "cpu",
        "device_name": "Generic 2-core CPU", "commit": COMMIT, "host_cores": 2, "threads": 2,
        "versions": {"turnout": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "command": f"turnout train {fake.task} --seed {fake.seed}",
    }  # fmt: skip


def _phase(fake: Fake, step: int) -> str:
    return next(name for name, end in PHASE_ENDS.items() if step / fake.steps < end)


def _routed(fake: Fake) -> list[int]:
    layout = fake.layout * fake.layers if len(fake.layout) == 1 else fake.layout
    return [i for i, letter in enumerate(layout) if letter == "R"]


def _layer_usage(fake: Fake, step: int, draw: random.Random) -> list[float]:
    """Half open, then one whole layer, then the final usage in one layer."""
    share = step / fake.steps
    ramp = min(1.0, max(0.0, (share - 0.3) / 0.4))
    routed = _routed(fake)
    usage = []
    for layer in range(len(routed)):
        last_open = layer == 1 % len(routed)
        start = 0.97 if last_open else 0.35 + 0.1 * layer
        end = fake.final_usage * len(routed) if last_open else 0.0
        fall = 1 / (1 + math.exp(18 * (ramp - (0.65 if last_open else 0.3))))
        value = end + (start - end) * max(0.0, fall - 0.002)
        usage.append(min(1.0, value * (1 + 0.06 * draw.uniform(-1, 1))) if value > 2e-5 else 0.0)
    return usage


def _quality(fake: Fake, step: int, draw: random.Random) -> tuple[float, float]:
    """(accuracy, loss) at a step."""
    share = step / fake.steps
    if fake.task == "text":
        loss = fake.final_quality + (5.5 - fake.final_quality) * math.exp(-9 * share) + 0.02 * draw.uniform(-1, 1)
        return min(0.6, 0.05 + 0.5 * (1 - math.exp(-7 * share))), loss
    learnt = 1 / (1 + math.exp(-40 * (share - 0.18 - 0.03 * (fake.seed % 3))))
    dip = 0.05 * math.exp(-(((share - 0.62) / 0.03) ** 2))
    accuracy = min(1.0, max(0.0, 0.01 + (fake.final_quality - 0.01) * learnt - dip * fake.final_quality))
    return accuracy, 4.6 * (1 - accuracy) + 0.002


def _metrics(fake: Fake, draw: random.Random) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"kind": "event", "step": 0, "event": "phase", "detail": "start in explore"}]
    previous = "explore"
    reasons = {"ramp": "solved at 0.9950 after 600 steps", "hold": "lambda reached 0.02"}
    for step in range(10, fake.steps + 1, 10):
        phase = _phase(fake, step)
        lines.append(_train_line(fake, step, phase, draw))
        if phase != previous:
            detail = f"{previous} -> {phase}: {reasons[phase]}"
            lines.append({"kind": "event", "step": step, "event": "phase", "detail": detail})
            previous = phase
        if step % (fake.steps // 20) == 0:
            lines.append(_eval_line(fake, step, phase, draw))
    lines[-1]["final"] = True
    return lines


def _usage_fields(fake: Fake, layers: Sequence[float]) -> dict[str, Any]:
    usage = sum(layers) / len(layers) if layers else None
    gates = None if usage is None else usage * len(layers) * fake.length
    return {"usage": usage, "usage_layers": list(layers), "gates_per_seq": gates, "length": fake.length}


def _train_line(fake: Fake, step: int, phase: str, draw: random.Random) -> dict[str, Any]:
    fields = _usage_fields(fake, _layer_usage(fake, step, draw))
    accuracy, loss = _quality(fake, step, draw)
    noisy = min(1.0, max(0.0, draw.gauss(accuracy, math.sqrt(accuracy * (1 - accuracy) / 32))))
    skipping = step > 0.45 * fake.steps
    weight = 0.02 * min(1.0, max(0.0, (step / fake.steps - 0.3) / 0.4))
    penalty = weight * (fields["gates_per_seq"] or 0)
    return {
        "kind": "train", "step": step, "phase": phase, "lambda": weight, "loss": loss + penalty, "task_loss": loss,
        "penalty": penalty, "accuracy": noisy, **fields, "skipping": skipping, "capacity": None,
        "ms": (21 if skipping else 41) * (1 + 0.1 * draw.random()), "tokens_per_s": 2.0e5, "grad_norm": 0.8, "lr": 1e-3,
    }  # fmt: skip


def _eval_line(fake: Fake, step: int, phase: str, draw: random.Random) -> dict[str, Any]:
    last = step == fake.steps
    layers = _layer_usage(fake, step, draw)
    if last:
        layers = [fake.final_usage * len(layers) if i == 1 % len(layers) else 0.0 for i in range(len(layers))]
    accuracy, loss = _quality(fake, step, draw)
    if last and fake.task != "text":
        accuracy = fake.final_quality
    return {
        "kind": "eval", "step": step, "phase": phase, "n": 1024, "loss": loss, "accuracy": accuracy,
        **_usage_fields(fake, layers), "slices": _slices(fake, accuracy, loss),
    }  # fmt: skip


def _slices(fake: Fake, accuracy: float, loss: float) -> dict[str, Any]:
    if fake.task == "recall":
        return {"distance": [{"value": fake.length - 2, "n": 1024, "accuracy": accuracy, "loss": loss}]}
    positions = [1, 2, 4, 8, 16, 32, 64, 128]
    rows = [{"value": p, "n": 512, "accuracy": max(0.0, accuracy - 0.2 / p), "loss": loss + 1 / p} for p in positions]
    return {"position": rows}


def _gates(fake: Fake, step: int, draw: random.Random) -> dict[str, Any]:
    length, routed = fake.length, _routed(fake)
    layers = _layer_usage(fake, step, draw)
    mean = [[min(1.0, max(0.0, usage * (1 + 0.2 * draw.uniform(-1, 1)))) for _ in range(length)] for usage in layers]
    if step == fake.steps and fake.task != "text" and routed:
        everywhere = fake.final_usage if fake.router.partition(":")[0] in ("random", "frozen") else 0.0
        mean = [[min(1.0, everywhere * draw.uniform(0.7, 1.3)) for _ in range(length)] for _ in layers]
        if fake.final_usage > 0 and not everywhere:
            mean[1 % len(routed)][-1] = 1.0
            mean[0][3] = mean[0][length // 2] = 0.02
    return {
        "step": step, "phase": _phase(fake, step), "length": length, "layers": len(routed), "layer_index": routed,
        "groups": 1, "n": 64, "mean": [[round(value, 5) for value in row] for row in mean],
        "sequences": [_sequence(fake, mean, draw) for _ in range(4)] if routed else [],
    }  # fmt: skip


def _sequence(fake: Fake, mean: Sequence[Sequence[float]], draw: random.Random) -> dict[str, Any]:
    length = fake.length
    if fake.task == "text":
        start = draw.randrange(len(TEXT) // 2)
        tokens = list((TEXT * (2 + length // len(TEXT)))[start : start + length])
        # Attention opens where a word begins, so that there is something to read.
        gate = [
            [
                min(1.0, row[i] * (3 if i and not tokens[i - 1].isalpha() and tokens[i].isalpha() else 0.2))
                for i in range(length)
            ]
            for row in mean
        ]
        at = list(range(length - 1))
        targets = tokens[1:]
        predictions = [token if draw.random() < 0.55 else draw.choice("etaoin ") for token in targets]
    else:
        tokens = ["k7", f"v{draw.randrange(100)}", *(f"n{draw.randrange(46)}" for _ in range(length - 3)), "k7"]
        gate = [list(row) for row in mean]
        at, targets = [length - 1], [tokens[1]]
        predictions = [tokens[1] if draw.random() < fake.final_quality else "v0"]
    taken = [[int(draw.random() < value) for value in row] for row in gate]
    shown = [[round(value, 3) for value in row] for row in gate]
    return {"tokens": tokens, "taken": taken, "gate": shown, "at": at, "targets": targets, "predictions": predictions}


def _savings(fake: Fake, draw: random.Random) -> list[dict[str, Any]]:
    """Times from the FLOPs of the shapes plus an overhead that is largest for routing."""
    rows = []
    overhead = {"routed": 1.1, "this": 0.3, "static_hybrid": 0.35, "dense": 0.3, "local": 0.3}
    for length in fake.timed_lengths or (fake.length,):
        for what, factor, tokens in (("train_step", 3.0, 8 * length), ("prefill", 1.0, 8 * length), ("decode", 1.0, 1)):
            for arm, flops in _flops_per_token(fake, length).items():
                total = flops * tokens * factor * fake.layers
                ms = total / 2.4e7 + overhead[arm] * (0.08 if what == "decode" else factor)
                spread = 0.06 + 0.06 * draw.random()
                rows.append(
                    {
                        "what": what, "arm": arm, "length": length, "batch": 1 if what == "decode" else 8, "ms": ms,
                        "ms_p20": ms * (1 - spread), "ms_p80": ms * (1 + spread), "n": 40, "flops": total,
                        "usage": fake.final_usage if arm == "routed" else None, "joules": 0.09 * ms,
                        "tokens_per_s": 1e3 * tokens / ms, "peak_bytes": None,
                        "kv_bytes": _kv_bytes(fake, arm, length) if what == "decode" else None,
                    }
                )  # fmt: skip
    return rows


def _kv_bytes(fake: Fake, arm: str, length: int) -> float:
    shares = {"dense": 1.0, "static_hybrid": 1 / fake.layers, "local": 0.0}
    return shares.get(arm, fake.final_usage) * fake.layers * 2 * length * WIDTH * 4


def _flops_per_token(fake: Fake, length: int) -> dict[str, float]:
    square, attend = 4 * WIDTH * WIDTH, 2 * length * WIDTH
    conv = square + 2 * KERNEL * WIDTH
    dense = 2 * square + attend
    own = "routed" if "R" in fake.layout else "this"
    routed = square + conv + 2 * WIDTH + fake.final_usage * (square + attend)
    return {own: routed, "dense": dense, "static_hybrid": dense / 4 + 0.75 * conv, "local": conv}


def _summary(fake: Fake, folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    layout = fake.layout * fake.layers if len(fake.layout) == 1 else fake.layout
    unrouted = {"A": "dense", "L": "local"}.get(fake.layout, "static_hybrid")
    router = fake.router if "R" in layout else None
    return {
        "name": fake.name, "task": fake.task, "length": fake.length, "router": router, "local": LOCAL, "layout": layout,
        "arm": router or unrouted, "seed": fake.seed, "steps": fake.steps, "accuracy": last["accuracy"],
        "loss": last["loss"], "usage": last["usage"], "usage_layers": last["usage_layers"],
        "gates_per_seq": last["gates_per_seq"], "n_eval": 1024, "chance": None if fake.task == "text" else 0.01,
        "train_s": 83.0, "ms_per_step_dense": 42.1, "ms_per_step_skipping": 21.3 if router else None, "params": 812_000,
        "device": "cpu", "commit": COMMIT, "solved": last["accuracy"] > 0.99,
    }  # fmt: skip
