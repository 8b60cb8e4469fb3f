"""The part of `turnout bench` that measures whole models and compiled blocks, row by row as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.cli.result import Result, Table
from turnout.errors import ConfigError, nearest
from turnout.train.live import number, percent

if TYPE_CHECKING:
    import torch

    from turnout.bench.rows import Row
    from turnout.cli.flags import Call
    from turnout.models.config import ModelConfig

ARMS = ("dense", "static_hybrid", "routed")
# Every layer is the recipe's local track: inference only, and only when asked for.
LOCAL = "local"
CONTEXTS = {"cuda": "1024,4096,16384,32768,65536", "cpu": "256,1024,4096"}
BATCHES = {"cuda": "1,8,64", "cpu": "1,4"}


def bench_models(call: Call[Any], device: torch.device) -> Result:
    """Measure, append every row at once, and print."""
    options = call.options
    if options.what == "blocks":
        call.refuse_overrides("blocks have a size of their own")
        rows = _collect(options, _blocks(options, device))
        return Result(rows, [_block_table(rows, _place(options))])
    if options.what == "training":
        rows = _collect(options, _training(call, device))
        return Result(rows, [_training_table(rows, _place(options))])
    rows = _collect(options, _inference(call, device))
    return Result(rows, [inference_table(rows, _place(options))])


def _collect(options: Any, found: Iterable[Row]) -> list[Row]:
    """Write each row as soon as it is there: what was measured before an interruption is kept."""
    from turnout.bench.rows import append_rows

    rows = []
    for row in found:
        rows.append(row)
        if options.out != "-":
            append_rows(_folder(options), [row])
        print(f"{row['arm']}: {number(row['ms'])} ms {row['reason']}", file=sys.stderr, flush=True)
    return rows


def _inference(call: Call[Any], device: torch.device) -> Iterator[Row]:
    from turnout.bench.inference import Bill, measure_bill

    options = call.options
    model, vocab, _ = _recipe(call)
    have = _existing(options, device)
    for context in _numbers(options.contexts or CONTEXTS[device.type], "contexts"):
        for batch in _numbers(options.batches or BATCHES[device.type], "batches"):
            bill = Bill(
                context=context, batch=batch, usage=options.usage or 0.1, seconds=options.seconds,
                compiled=options.compiled,
            )  # fmt: skip
            case = {"layers": model.layers, "width": model.width, "local": model.local, **asdict(bill)}
            # How long and with how many calls it was measured is not what was measured.
            case = {key: value for key, value in case.items() if key not in ("seconds", "steps")}
            # Rows from before steps could be compiled do not say that they were not.
            case = {key: value for key, value in case.items() if key != "compiled" or value}
            arms = tuple(arm for arm in _arms(options) if not have("inference", arm, {**case, "what": "decode"}))
            yield from measure_bill(model, bill, vocab=vocab, device=device, arms=arms)


def _training(call: Call[Any], device: torch.device) -> Iterator[Row]:
    from turnout.bench.training import TrainCase, measure_training
    from turnout.models.config import hybrid_layout

    options = call.options
    model, vocab, config = _recipe(call)
    have = _existing(options, device)
    usage = options.usage or 0.25
    layouts = {"dense": "A", "static_hybrid": hybrid_layout(model.layers, usage), "routed": "R"}
    for length in _numbers(options.contexts or str(config.task.length), "contexts"):
        for batch in _numbers(options.batches or str(config.optim.batch), "batches"):
            case = TrainCase(length=length, batch=batch, vocab=vocab, usage=usage)
            for arm in _arms(options):
                size = {**asdict(case), "layers": model.layers, "width": model.width, "layout": layouts[arm]}
                if not have("train", arm, size):
                    yield measure_training(arm, replace(model, layout=layouts[arm]), config.optim, case, device=device)


def _blocks(options: Any, device: torch.device) -> Iterator[Row]:
    from turnout.bench.cases import Case
    from turnout.bench.training import block_cases, measure_block

    have = _existing(options, device)
    usage = options.usage or 0.25
    small = Case(n=256, p=usage, heads=2, kv_heads=2, dim=32, dtype="float32", part="block", step="forward+backward")
    for case in block_cases(usage) if device.type == "cuda" else [small]:
        if not have("block", "routed:auto", case.to_dict()):
            compiled = device.type == "cuda"
            yield from measure_block(case, device=device, compiled=compiled, seconds=options.seconds)


def _recipe(call: Call[Any]) -> tuple[ModelConfig, int, Any]:
    """Architecture, vocabulary and whole config of the recipe that the command line names."""
    from turnout.recipes import get_recipe, recipe_names

    name = call.options.model
    if name is None:
        raise ConfigError(f"turnout bench {call.options.what} needs a RECIPE; turnout list recipes names them")
    if name not in recipe_names():
        raise ConfigError(f"{name!r} is not a recipe{nearest(name, recipe_names())}")
    config = get_recipe(name).example(call.overrides)
    return config.model, call.options.vocab or config.task.vocab, config


def _existing(options: Any, device: torch.device) -> Callable[[str, str, Mapping[str, Any]], bool]:
    """Whether a row of this device is there already, when only missing ones are wanted."""
    from turnout.bench.rows import provenance, read_rows, same_case

    if not options.missing or options.out == "-":
        return lambda kind, arm, case: False
    here = provenance(device)["device"]
    rows = [row for row in read_rows(_folder(options)) if row["device"] == here]
    return lambda kind, arm, case: any(
        row["kind"] == kind and row["arm"] == arm and same_case(row, case) for row in rows
    )


def _folder(options: Any) -> Path:
    from turnout.bench.rows import bench_dir

    return bench_dir() if options.out in (None, "-") else Path(options.out)


def _place(options: Any) -> str:
    return "nothing was written" if options.out == "-" else f"rows appended to {_folder(options)}"


def _numbers(text: str, flag: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--{flag}={text!r}; expected whole numbers separated by commas, such as 1024,8192"
        ) from error
    if min(found) < 1:
        raise ConfigError(f"--{flag}={text!r}; expected numbers >= 1")
    return found


def _arms(options: Any) -> tuple[str, ...]:
    wanted = tuple(options.arms.split(",")) if options.arms else ARMS
    known = (*ARMS, LOCAL) if options.what == "inference" else ARMS
    for arm in wanted:
        if arm not in known:
            raise ConfigError(f"--arms={arm!r}{nearest(arm, known)}")
    return wanted


def inference_table(rows: Sequence[Row], note: str) -> Table:
    """One line for each context, batch and arm, with what dense attention takes of it."""
    decode = [row for row in rows if row["case"]["what"] == "decode"]
    dense = {_size(row): row for row in decode if row["arm"] == "dense" and row["ms"]}
    texts = []
    for row in decode:
        case, base = row["case"], dense.get(_size(row))
        if not row["ms"]:
            texts.append((f"{case['context']:,}", str(case["batch"]), row["arm"], row["reason"], *[""] * 7))
            continue
        answer = "" if base is None else f"{row['answer_tokens_per_s'] / base['answer_tokens_per_s']:.2f}"
        texts.append(
            (f"{case['context']:,}", str(case["batch"]), row["arm"], percent(row["usage"]), number(row["ttft_ms"]),
             number(row["ms"], ".3f"), number(row["tokens_per_s"], ",.0f"), number(row["kv_bytes"] / 1e6, ",.1f"),
             number(row["peak_bytes"] and row["peak_bytes"] / 1e9, ".1f"), number(row["joule_per_token"], ".4f"),
             answer)
        )  # fmt: skip
    columns = (
        "context", "batch", "arm", "usage", "first token ms", "ms a token", "tokens/s", "KV MB a step", "peak GB",
        "J a token", "answer vs dense",
    )  # fmt: skip
    return Table(columns, texts, note)


def _size(row: Row) -> tuple[Any, ...]:
    case = row["case"]
    size = tuple(case[name] for name in ("layers", "width", "context", "batch", "local"))
    return *size, case.get("compiled", False)


def _training_table(rows: Sequence[Row], note: str) -> Table:
    texts = [
        (f"{row['case']['length']:,}", str(row["case"]["batch"]), row["arm"], number(row["ms"], ".2f"),
         number(row["tokens_per_s"], ",.0f"), percent(row["mfu"]), percent(row["mfu_dense_equivalent"]))
        for row in rows
    ]  # fmt: skip
    return Table(("length", "batch", "arm", "ms a step", "tokens/s", "MFU", "as dense"), texts, note)


def _block_table(rows: Sequence[Row], note: str) -> Table:
    texts = [
        (f"{row['case']['n']:,}", row["arm"], number(row["ms"], ".3f"), number(row["tflops"], ".0f"), row["reason"],
         ", ".join(f"{arm} {value:.2f}x" for arm, value in row["ratio"].items()))
        for row in rows
    ]  # fmt: skip
    return Table(("N", "arm", "ms", "TFLOP/s", "", "dense / this"), texts, note)
