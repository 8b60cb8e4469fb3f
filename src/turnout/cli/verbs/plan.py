"""`turnout plan`: predicted times of a layer or a model, and from where on routing pays."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError
from turnout.train.live import number

if TYPE_CHECKING:
    from turnout.bench.cases import Case
    from turnout.bench.cost_model import CostModel

# What the constants are fitted to: lengths, fractions and widths apart, mixers and blocks.
GRID = {
    "cpu": "256,1/16,part=mixer; 1024,1/64,part=mixer; 2048,1/16,part=mixer; 512,1/4,part=mixer,heads=2; "
    "2048,1/4,part=mixer,heads=2; 512,1/16,part=block; 1024,1/4,part=block",
    "cuda": "512,1/4,batch=32; 2048,1/16,batch=16; 8192,1/4,batch=4; 8192,1/16,batch=4,part=mixer; 32768,1/4; "
    "32768,1/64,part=mixer; 4096,1/4,heads=8,batch=8",
}
DECODE_GRID = {
    # Caches that do not fit into the processor's own, as in real use.
    "cpu": "2048,1/4,batch=16; 4096,1/2,batch=4; 4096,1/8,batch=8; 8192,1/4,batch=4; 16384,1/2,batch=2",
    "cuda": "2048,1/8,batch=8; 8192,1/8,batch=32; 32768,1/8,batch=8; 32768,1/2,batch=4,kv_heads=4",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Predict milliseconds of dense, local and routed layers from counted work and measured peaks of a device.

    The printed error is the median over rows that the fit of the constants did not see.

    Args:
        n: tokens N of a sequence; p: fraction of the rows that attend.
        batch: sequences; width: model dimension E; heads: query heads; kv_heads: key/value heads (none = heads).
        layers: layers of the model; vocab: size of its vocabulary, 0 = without embedding and head.
        part: mixer or block.
        dtype: float32, bfloat16 or float16; none = float32 on a CPU, bfloat16 on a GPU.
        device: a device with a fitted model, part of its name is enough; none = this one.
        calibrate: fit the constants again to the rows in --out, and store them.
        measure: measure peaks and a small grid of layers and decode steps here first, then calibrate.
        seconds: for each case that is measured.
        rounds: how often the grid is measured; of repeated rows the fastest counts.
        out: folder of the rows; none = results/bench of this checkout.
    """

    n: int = 8192
    p: str = "1/4"
    batch: int = 1
    width: int = 1024
    heads: int = 16
    kv_heads: int | None = None
    layers: int = 1
    vocab: int = 0
    part: Literal["mixer", "block"] = "block"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    calibrate: bool = False
    measure: bool = False
    seconds: float = 0.5
    rounds: int = 1
    out: str | None = None


def run(call: Call[Options]) -> Result:
    """Calibrate if asked, then predict."""
    options = call.options
    case = _case(options)
    folder = Path(options.out) if options.out is not None else None
    for _ in range(options.rounds if options.measure else 0):
        _measure(options, folder)
    if options.measure or options.calibrate:
        return _calibrate(folder)
    from turnout.bench.calibrate import find_models, read_models

    device, dtype = options.device or _here(), case.dtype
    models = find_models(read_models(folder), device, dtype)
    data = {step: _predict(model, case, options) for step, model in models.items()}
    parts: list[str | Table] = [f"{case.part} of width {case.width}, {case}, {options.layers} layers"]
    columns = ("pass", "dense ms", "routed ms", "local ms", "dense / routed", "pays up to p", "pays from N", "error")
    rows = [
        (step, *(number(found["ms"][arm], ".4g") for arm in ("dense", "routed", "local")),
         f"{found['ms']['dense'] / found['ms']['routed']:.2f}x", number(found["break_even_p"], ".3f"),
         "never" if found["break_even_n"] is None else f"{found['break_even_n']:,}",
         "not known" if found["error_percent"] is None else f"{found['error_percent']:.0f} % on {found['n_rows']} rows")
        for step, found in data.items()
    ]  # fmt: skip
    parts.append(Table(columns, rows, f"predicted on {next(iter(models.values())).device} in {dtype}"))
    parts += [_parts_table(step, found) for step, found in data.items()]
    return Result({"case": case.to_dict(), "layers": options.layers, "device": device, "passes": data}, parts)


def _case(options: Options) -> Case:
    from turnout.bench.cases import Case

    for name in ("layers", "width", "rounds"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name}={getattr(options, name)}; expected >= 1")
    if options.vocab < 0 or options.seconds < 0:
        raise ConfigError(f"--vocab={options.vocab}, --seconds={options.seconds}; expected >= 0")
    if options.heads < 1 or options.width % options.heads:
        raise ConfigError(f"--width={options.width}, --heads={options.heads}; expected heads to divide width")
    return Case(
        n=options.n, p=_fraction(options.p), batch=options.batch, heads=options.heads,
        kv_heads=options.heads if options.kv_heads is None else options.kv_heads,
        dim=options.width // options.heads, dtype=options.dtype or _dtype(options), part=options.part,
    )  # fmt: skip


def _fraction(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--p={text!r}; expected a fraction such as 1/16 or 0.25") from error


def _dtype(options: Options) -> str:
    """bfloat16 where the device is a GPU."""
    if options.device is not None:
        from turnout.train.manifest import cpu_model

        return (
            "float32"
            if "cpu" in options.device.lower() or options.device.lower() in cpu_model().lower()
            else "bfloat16"
        )
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def _here() -> str:
    import torch

    from turnout.train.manifest import device_name

    if torch.cuda.is_available():
        return device_name("cuda")
    return f"{device_name('cpu')}, {torch.get_num_threads()} threads"


def _predict(model: CostModel, case: Case, options: Options) -> dict[str, Any]:
    """Times of the three arms, their parts, and the break-evens of one pass."""
    from turnout.bench.cost_model import ARMS, Work, break_even_n, break_even_p, head_work, work_of

    case = replace(case, step="forward" if model.step == "decode" else model.step)
    work = work_of(model.step)
    head = head_work(replace(case, n=1) if model.step == "decode" else case, options.vocab) if options.vocab else Work()
    total = {arm: work(case, arm).times(options.layers).plus(head) for arm in ARMS}
    return {
        "ms": {arm: model.ms(done) for arm, done in total.items()},
        "parts_ms": {arm: model.seconds(done).times(1e3)._asdict() for arm, done in total.items()},
        "break_even_p": break_even_p(model, case), "break_even_n": break_even_n(model, case),
        "error_percent": model.error, "n_rows": model.n_rows, "commit": model.commit,
    }  # fmt: skip


def _parts_table(step: str, found: dict[str, Any]) -> Table:
    names = ("matmul", "dense", "routed", "moved", "launches")
    rows = [(arm, *(number(parts[name], ".3g") for name in names)) for arm, parts in found["parts_ms"].items()]
    columns = ("arm", "projections, MLP", "dense attention", "routed attention", "bytes moved", "launches")
    return Table(columns, rows, f"{step}: where the milliseconds go")


def _measure(options: Options, folder: Path | None) -> None:
    """Peaks, layer rows and decode rows of this machine, appended case by case."""
    import torch

    from turnout.bench import layers
    from turnout.bench.cases import parse_cases
    from turnout.bench.decode import measure_decode
    from turnout.bench.kernels import default_case
    from turnout.bench.layers import measure_layer
    from turnout.bench.peaks import measure_peaks
    from turnout.bench.rows import append_rows, bench_dir

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = folder or bench_dir()
    append_rows(where, measure_peaks(device, dtype=layers.default_case(device).dtype, seconds=options.seconds))
    cases = parse_cases(GRID[device.type], layers.default_case(device))
    for case in [replace(case, step=step) for case in cases for step in ("forward", "forward+backward")]:
        print(f"layer: {case} {case.part}", file=sys.stderr, flush=True)
        append_rows(where, measure_layer(case, device=device, seconds=options.seconds))
    for case in parse_cases(DECODE_GRID[device.type], default_case(device)):
        print(f"decode: {case}", file=sys.stderr, flush=True)
        append_rows(where, measure_decode(case, device=device, seconds=options.seconds))


def _calibrate(folder: Path | None) -> Result:
    from turnout.bench.calibrate import calibrate, to_dict, write_models
    from turnout.bench.rows import read_rows

    models = calibrate(read_rows(folder))
    path = write_models(models, folder)
    rows = [
        (model.device, model.dtype, model.step, str(model.n_rows), f"{model.error:.0f} %",
         " ".join(f"{name} {value:.2f}" for name, value in model.constants._asdict().items()))
        for model in models
    ]  # fmt: skip
    columns = ("device", "dtype", "pass", "rows", "median error, held out", "times slower than the peak")
    return Result([to_dict(model) for model in models], [Table(columns, rows), f"written to {path}"])
