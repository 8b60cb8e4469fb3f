"""LM2 to LM4: tokens a second of training, one process against two, and seconds of whole answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnout.claims.language_models import SOURCE, text_path
from turnout.claims.registry import Claim, Finding, Summaries, claim
from turnout.errors import TurnoutError

PACE = 500_000
# Tokens a sequence: how many times dense attention's speed a compiled block trains at, usage 1/4.
BLOCKS = {2048: 1.0, 8192: 1.5, 32768: 2.3}
# Tokens of prompt and answer together, and of the answer: what is claimed, then where it does not hold.
ANSWERS = ((32_768, 4096), (32_768, 256), (65_536, 256), (8192, 256), (2048, 256))
TIMES = 4.0
# Nats: two runs on the same batches agree to the third decimal. Rounding grows with the steps, by more where the loss
# falls fast; a wrong gradient or other batches show in the first one.
NEAR = 1e-3
TINY: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2}
STEPS = 20


def _record(device: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from turnout.train.loop import pick_device
    from turnout.train.manifest import device_name

    where = pick_device(device)
    return {"device_name": device_name(where), "device": where.type, "rows": rows}


def _verdict(good: bool, record: dict[str, Any]) -> str:
    """What a CPU measures at a toy's size says that the measurement works, and nothing else."""
    if record["device"] == "cpu":
        return "not measured"
    return "holds" if good else "does not hold"


def _pace(device: str) -> dict[str, Any]:
    from turnout.bench.training import TrainCase, block_cases, measure_block, measure_training
    from turnout.models.config import hybrid_layout
    from turnout.recipes.lm import lm_run
    from turnout.train.loop import pick_device

    where = pick_device(device)
    config = lm_run("<text>", "routed", router="linear")
    model, optim, case = config.model, config.optim, TrainCase()
    if where.type == "cpu":
        model, optim = replace(model, **TINY), replace(optim, compile=False, batch=2)
        case = TrainCase(length=64, batch=2, vocab=256, steps=1)
    layouts = {"dense": "A", "static_hybrid": hybrid_layout(model.layers, case.usage), "routed": "R"}
    rows = [
        measure_training(arm, replace(model, layout=layout), optim, case, device=where)
        for arm, layout in layouts.items()
    ]
    for block in block_cases(case.usage) if where.type == "cuda" else []:
        rows += measure_block(block, device=where, seconds=0.4)
    return _record(device, rows)


def _judge_pace(seen: Summaries) -> list[Finding]:
    return [finding for record in seen.get("bench", []) for finding in _pace_findings(record)]


def _pace_findings(record: dict[str, Any]) -> Iterator[Finding]:
    rows = {row["arm"]: row for row in record["rows"] if row["kind"] == "train"}
    dense, real = rows["dense"], record["device"] == "cuda"
    words = "; ".join(f"{arm} {row['tokens_per_s']:,.0f}" for arm, row in rows.items())
    yield Finding(
        statement=f"124M dense, bf16, context 1,024: at least {PACE:,} tokens/s in training ({record['device_name']})",
        quoted="540K on one H200, compiled GPT with bf16 weights; 453K on an H100",
        measured=f"{dense['tokens_per_s']:,.0f} tokens/s" + (f", MFU {100 * dense['mfu']:.0f} %" if real else ""),
        n=dense["n_calls"],
        interval=f"{dense['ms_p20']:.1f}-{dense['ms_p80']:.1f} ms a step, p20 to p80",
        control=words,
        verdict=_verdict(dense["tokens_per_s"] >= PACE, record),
    )
    blocks = [row for row in record["rows"] if row["kind"] == "block" and row["arm"] == "routed:auto" and row["ms"]]
    ratios = dict(sorted((row["case"]["n"], min(row["ratio"].values())) for row in blocks))
    if not ratios:
        return
    yield Finding(
        statement="a routed block (E = 1,024, usage 1/4) trains as fast as dense at 2K, 1.5x at 8K, 2.3x at 32K "
        f"({record['device_name']})",
        quoted="(ours) 1.0x, 1.5x, 2.3x",
        measured=", ".join(f"{n:,}: {ratio:.2f}x" for n, ratio in ratios.items()),
        n=min(row["n_calls"] for row in blocks),
        interval="medians of interleaved calls",
        control="the faster of flash and cuDNN, compiled alike, in the same run",
        verdict="holds" if all(ratios.get(n, 0) >= least for n, least in BLOCKS.items()) else "does not hold",
    )


def two_processes(
    device: str, *, layouts: tuple[str, ...] = ("dense", "routed"), at_once: bool = False, precision: str = "fp32"
) -> Iterator[dict[str, Any]]:
    """A row for each layout and kind, as soon as it is there; a run that failed is a row that says why.

    Args:
        at_once: all runs side by side, which is quicker and says nothing about their pace.
        precision: of the runs; bf16 says how far its rounding carries in so many steps.
    """
    import torch

    from turnout.bench.processes import KINDS, compared, halved_lines, train_lines
    from turnout.recipes import get_recipe

    settings: dict[str, Any] = {
        "task.path": text_path(), "schedule.steps": STEPS, "optim.compile": False, "optim.precision": precision,
        "optim.loss_chunk": 0, "optim.warmup": 10, "loop.log_every": 1, "loop.cuda_graph": False,
        "loop.eval_every": 100_000, "loop.final_sequences": 16, "optim.batch": 16,
    }  # fmt: skip
    if device == "cpu" or not torch.cuda.is_available():
        settings |= {f"model.{name}": value for name, value in TINY.items()}
        settings |= {
            "task.length": 64,
            "optim.batch": 4,
            "device": "cpu",
            "schedule.steps": 8,
            "optim.precision": "fp32",
        }
        settings |= {"task.tokenizer": "bytes", "task.vocab": 256}
    elif torch.cuda.device_count() < 2:
        raise TurnoutError("one against two processes needs two GPUs; make two visible, or use device=cpu")
    jobs = [(layout, kind) for layout in layouts for kind in (*KINDS, "halves")]
    with tempfile.TemporaryDirectory(prefix="turnout-processes-") as folder, ThreadPoolExecutor(len(jobs)) as pool:

        def lines(job: tuple[str, str]) -> list[dict[str, Any]]:
            layout, kind = job
            # Gate noise is each process's own; without it the same batches must give the same losses.
            own = settings | ({"model.routing.noise": "none"} if layout == "routed" else {})
            if kind == "halves":
                return halved_lines(get_recipe(f"lm_124m_{layout}").config(own))
            return train_lines(f"lm_124m_{layout}", kind, own, Path(folder) / layout, timeout=200)

        running = {job: pool.submit(lines, job) for job in jobs} if at_once else {}
        one: list[dict[str, Any]] = []
        for layout, kind in jobs:
            try:
                found = running[layout, kind].result() if at_once else lines((layout, kind))
                if kind == "one":
                    one = found
                elif one:
                    shown = {"layout": layout, "at_once": at_once, "precision": precision}
                    yield {**shown, **compared(kind, one, found)}
            except (TurnoutError, ValueError) as error:
                yield {"layout": layout, "kind": kind, "error": str(error)}
                one = [] if kind == "one" else one


def _judge_processes(seen: Summaries) -> list[Finding]:
    found = []
    for record in seen.get("bench", []):
        for row in record["rows"]:
            if "error" in row:
                continue
            if row["kind"] == "halves":
                continue
            one, two = row["tokens_per_s"]
            rounding = _rounding(row, record["rows"])
            said = "".join(f"{name} {value:.1e}; " for name, value in rounding.items())
            found.append(
                Finding(
                    statement=f"{row['layout']}: two processes ({row['kind'].upper()}) train what one trains "
                    f"({row['precision']}, {record['device_name']})",
                    quoted=f"(ours) losses within {NEAR:g} over {row['steps']} steps",
                    measured=f"largest difference {row['largest_difference']:.1e}; last losses {row['last'][0]:.4f}, "
                    f"{row['last'][1]:.4f}",
                    n=row["steps"],
                    interval="every step of one run",
                    control=said + "runs side by side, pace not measured"
                    if row["at_once"]
                    else f"{said}one process {one:,.0f} tokens/s, two {two:,.0f} (eager)",
                    verdict=_near(row["largest_difference"], rounding),
                )
            )
    return found


def _near(difference: float, rounding: dict[str, float]) -> str:
    """Past the limit, but less than rounding itself does: the same training, though not what was asked for."""
    if difference <= NEAR:
        return "holds"
    return "holds with changes" if difference <= max(rounding.values(), default=0.0) else "does not hold"


def _rounding(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What rounding alone changes in the losses of one process on the same batches, by what is compared.

    Adam's first updates are lr in size however small a gradient is, so that its rounding moves weights by as much; what
    that does to a falling loss is no error of the second process.
    """
    same = [r for r in rows if r.get("layout") == row["layout"] and "losses" in r]
    found: dict[str, float] = {}
    for r in same:
        if (r["kind"], r["precision"]) == ("halves", row["precision"]):
            found["one process, each batch in two halves:"] = r["largest_difference"]
    exact = [r for r in same if r["precision"] == "fp32"]
    if row["precision"] == "bf16" and exact:
        pairs = zip(row["losses"], exact[0]["losses"], strict=False)
        found["one process, bf16 against float32:"] = max(abs(own[0] - other[0]) for own, other in pairs)
    return found


def answers(
    device: str, *, arms: tuple[str, ...] = ("routed", "dense", "static_hybrid"), done: Sequence[dict[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """A row for each context, length of answer and arm, as soon as it is there, without those that are `done`."""
    from turnout.bench.generation import Answer, measure_answer
    from turnout.recipes.lm import lm_run
    from turnout.train.loop import pick_device

    where = pick_device(device)
    model = lm_run("<text>", "routed", router="linear").model
    on_gpu = where.type == "cuda"
    # Wide enough that reading keys and values, not starting kernels, is what a dense step waits for.
    model = replace(model, layers=16, width=2048, heads=16) if on_gpu else replace(model, **TINY)
    there = {(*_size(row), row["arm"]) for row in done}
    for context, tokens in ANSWERS if on_gpu else ((272, 16), (80, 16)):
        for arm in arms:
            if (context, tokens, arm) not in there:
                case = Answer(prompt=context - tokens, tokens=tokens, batch=8, compiled=on_gpu)
                yield measure_answer(model, arm, case, vocab=50304 if on_gpu else 256, device=where)


def _size(row: dict[str, Any]) -> tuple[int, int]:
    """Context and tokens of the answer."""
    return row["case"]["prompt"] + row["case"]["tokens"], row["case"]["tokens"]


def _judge_answers(seen: Summaries) -> list[Finding]:
    found = []
    for record in seen.get("bench", []):
        pace = {(*_size(row), row["arm"]): row["tokens_per_s"] for row in record["rows"]}
        sizes = [
            size
            for size in dict.fromkeys(key[:2] for key in pace)
            if {(*size, "dense"), (*size, "routed")} <= pace.keys()
        ]
        ratios = {size: pace[*size, "routed"] / pace[*size, "dense"] for size in sizes}
        for i, ((context, tokens), ratio) in enumerate(ratios.items()):
            routed, dense, static = (pace.get((context, tokens, arm)) for arm in ("routed", "dense", "static_hybrid"))
            # The longest answer is the claim; the others say where it ends.
            first = i == 0
            found.append(
                Finding(
                    statement=f"generate, batch 8, {context - tokens:,} tokens of prompt and {tokens:,} of answer, one "
                    f"in ten attending: {TIMES:g} times dense's tokens/s ({record['device_name']})",
                    quoted=f"(ours) >= {TIMES:g}x at 32K when attention dominates"
                    if first
                    else "(ours) where it does not",
                    measured=f"{ratio:.2f}x: {routed:,.0f} against {dense:,.0f} tokens/s",
                    n=1,
                    interval="one whole answer, prompt included",
                    control="" if static is None else f"static hybrid {static:,.0f} tokens/s",
                    verdict=_verdict(ratio >= TIMES, record),
                )
            )
    return found


claim(
    Claim(
        id="LM2", source=SOURCE, title="training throughput of a 124M control and of routed blocks",
        judge=_judge_pace, bench=_pace, seeds=1,
    )
)  # fmt: skip
claim(
    Claim(
        id="LM3", source=SOURCE, title="two processes train what one trains", judge=_judge_processes,
        bench=lambda device: _record(device, list(two_processes(device))), seeds=1,
    )
)  # fmt: skip
claim(
    Claim(
        id="LM4", source=SOURCE, title="whole answers at 32K: routed against dense", judge=_judge_answers,
        bench=lambda device: _record(device, list(answers(device))), seeds=1,
    )
)  # fmt: skip
