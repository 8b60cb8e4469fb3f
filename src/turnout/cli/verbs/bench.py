"""`turnout bench`: kernels, layers, decoding and the target table, measured against dense attention in the same run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError
from turnout.train.live import number

if TYPE_CHECKING:
    import torch

    from turnout.bench.cases import Case
    from turnout.bench.rows import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Measure, print a table, and append the rows as JSON lines. Ratios are dense ms / routed ms, above 1 = saved.

    kernels, layers, decode, patterns and dispatch measure cases; breakeven finds the fraction of rows from which dense
    attention is the faster choice; peaks measures matrix products, copies and launches; targets prints the target
    table from the rows that are there, and --measure measures first what this device can. inference and training
    measure the model of a recipe (settings may be changed) beside dense attention and the static hybrid, with gates
    drawn at --usage: inference the time to the first token, each token's time, bytes, memory and energy; training
    tokens a second and utilisation; blocks the compiled training step of one block.

    Args:
        what: kernels, layers, decode, patterns, dispatch, breakeven, peaks, targets, inference, training or blocks.
        model: with inference and training, a recipe.
        cases: N,p;N,p;... with further fields by name: 8192,1/8,batch=4,step=forward+backward.
        explain: a case; say which implementation attend would choose for it and why, and measure nothing.
        impl: implementations of attend to measure, separated by commas; none = triton and auto on a GPU, auto on a CPU.
        device: auto, cpu or cuda.
        seconds: for each case, all its arms together.
        flex: measure gathered, compiled FlexAttention too (slow to compile).
        measure: with targets, measure before printing.
        out: folder for the rows; none = results/bench of this checkout, "-" = write nothing.
        table: with breakeven, the JSON table to update, that attend dispatches by.
        contexts, batches: with inference and training, tokens and sequences, separated by commas.
        usage: with inference, training and blocks, the fraction of gates that are open.
        arms: with inference and training, some of dense, static_hybrid and routed (inference: and local, the recipe's
            local track in every layer), separated by commas.
        vocab: with inference and training, token ids; none = the recipe's.
        compiled: with inference, compile the blocks of the steps, of every arm (GPU only).
        missing: with inference, training and blocks, only what has no row of this device yet.
    """

    positional: ClassVar[tuple[str, ...]] = ("what", "model")
    overridable: ClassVar[bool] = True
    what: Literal[
        "kernels",
        "layers",
        "decode",
        "patterns",
        "dispatch",
        "breakeven",
        "peaks",
        "targets",
        "inference",
        "training",
        "blocks",
    ] = "targets"
    model: str | None = None
    cases: str | None = None
    explain: str | None = None
    impl: str | None = None
    device: str = "auto"
    seconds: float = 1.0
    flex: bool = False
    measure: bool = False
    out: str | None = None
    table: str | None = None
    contexts: str | None = None
    batches: str | None = None
    usage: float | None = None
    arms: str | None = None
    vocab: int | None = None
    compiled: bool = False
    missing: bool = False


MODELS = ("inference", "training")


def run(call: Call[Options]) -> Result:
    """Measure or look up, and print."""
    options = call.options
    if not options.seconds >= 0:
        raise ConfigError(f"--seconds={options.seconds}; expected >= 0")
    for flag, given, where in (
        ("cases", options.cases, ("kernels", "layers", "decode", "patterns", "dispatch", "breakeven")),
        ("measure", options.measure, ("targets",)),
        ("table", options.table, ("breakeven",)),
        ("flex", options.flex, ("kernels", "patterns")),
        ("impl", options.impl, ("kernels", "layers")),
        *((name, getattr(options, name), MODELS) for name in ("model", "contexts", "batches", "arms", "vocab")),
        ("compiled", options.compiled, ("inference",)),
        *((name, getattr(options, name), (*MODELS, "blocks")) for name in ("usage", "missing")),
    ):
        if given and options.what not in where:
            raise ConfigError(f"--{flag} has no effect with {options.what}; it belongs to {' or '.join(where)}")
    from turnout.train.surroundings import pick_device

    device = pick_device(options.device)
    if options.what in MODELS or options.what == "blocks":
        from turnout.cli.bench_models import bench_models

        return bench_models(call, device)
    call.refuse_overrides("only inference and training measure a recipe's model")
    if options.explain is not None:
        return _explain(options, device)
    if options.what == "targets":
        return _targets(options, device)
    if options.what == "breakeven":
        return _break_even(options, device)
    if options.what == "peaks":
        rows = _peaks(device, options.seconds)
        return Result(rows, [_table(rows, _written(options, rows))])
    rows, note = [], ""
    for case in _cases(options, device):
        found = _measure(options.what, case, options, device)
        # Case by case: what was measured before an interruption is kept.
        note = _written(options, found)
        rows += found
    return Result(rows, [_table(rows, note)])


def _cases(options: Options, device: torch.device) -> list[Case]:
    from turnout.bench import breakeven, dispatch, kernels, layers, patterns
    from turnout.bench.cases import parse_cases

    if options.cases is not None:
        return parse_cases(options.cases, _default(options.what, device))
    if options.what == "layers":
        return layers.default_cases(device)
    if options.what == "decode":
        return [_default("decode", device)]
    if options.what == "patterns":
        return patterns.default_cases(device)
    if options.what == "dispatch":
        return dispatch.default_cases()
    return breakeven.default_cases(device) if options.what == "breakeven" else kernels.default_cases(device)


def _default(what: str, device: torch.device) -> Case:
    from turnout.bench import kernels, layers

    if what == "layers":
        return layers.default_case(device)
    if what == "decode":
        return kernels.default_case(device, n=32768 if device.type == "cuda" else 2048, p=0.1, batch=8)
    return kernels.default_case(device)


def _measure(what: str, case: Case, options: Options, device: torch.device) -> list[Row]:
    from turnout.bench.decode import measure_decode
    from turnout.bench.kernels import measure_kernel
    from turnout.bench.layers import measure_layer
    from turnout.bench.patterns import measure_patterns

    _progress(f"{what}: {case}")
    if what == "block":
        from turnout.bench.training import measure_block

        return measure_block(case, device=device, seconds=options.seconds)
    if what == "dispatch":
        from turnout.bench.dispatch import measure_dispatch

        return measure_dispatch(case, device=device, seconds=min(options.seconds, 0.3))
    if what == "decode":
        return measure_decode(case, device=device, seconds=options.seconds)
    if what == "patterns":
        return measure_patterns(case, device=device, seconds=options.seconds, flex=options.flex)
    impls = options.impl.split(",") if options.impl else None
    if what in ("layers", "layer"):
        rows = []
        for impl in impls or ["auto"]:
            rows += measure_layer(case, device=device, impl=impl, seconds=options.seconds, profiles=options.measure)
        return rows
    return measure_kernel(
        case, device=device, impls=impls, seconds=options.seconds, flex=options.flex, profiles=options.measure
    )


def _peaks(device: torch.device, seconds: float) -> list[Row]:
    from turnout.bench.peaks import measure_peaks

    dtypes = ("float32", "bfloat16") if device.type == "cuda" else ("float32",)
    return [row for dtype in dtypes for row in measure_peaks(device, dtype=dtype, seconds=min(seconds, 1.0))]


def _break_even(options: Options, device: torch.device) -> Result:
    from turnout.bench.breakeven import measure_break_even, write_table
    from turnout.bench.rows import read_rows

    found: list[Row] = []
    note = ""
    of_mixers = [row for row in read_rows(_folder(options)) if row["kind"] == "dispatch"]
    for case in _cases(options, device):
        _progress(f"break-even: {case}")
        row, behind = measure_break_even(case, device=device, seconds=min(options.seconds, 0.3))
        found.append(row)
        note = _written(options, [*behind, row])
        if options.table is not None and any(row["break_even"] is not None for row in found):
            write_table(Path(options.table), [*of_mixers, *found])
    if options.table is not None:
        write_table(Path(options.table), [*of_mixers, *found])
        note += f"; table {options.table}"
    texts = [
        (str(row["case"]["n"]), row["case"]["dtype"], str(row["case"]["dim"]), row["case"]["step"], row["arm"],
         row["reason"] or number(row["break_even"], ".3f"))
        for row in found
    ]  # fmt: skip
    columns = ("N", "dtype", "D", "pass", "implementation", "break-even p")
    return Result(found, [Table(columns, texts, "fraction of rows at which routed = fastest dense"), note])


def _targets(options: Options, device: torch.device) -> Result:
    from turnout.bench.rows import read_rows
    from turnout.bench.targets import cases_to_measure, target_rows

    fresh: list[Row] = []
    note = "from committed rows; --measure measures what this device can"
    if options.measure:
        fresh += _peaks(device, options.seconds)
        note = _written(options, fresh)
        for kind, case in cases_to_measure(device):
            found = _measure(kind, case, options, device)
            note = _written(options, found)
            fresh += found
    rows = target_rows([*read_rows(_folder(options)), *(fresh if options.out == "-" else [])])
    texts = [
        (row["case"], row["target"], number(row["measured"], ".2f"), row["baseline"] or "-",
         number(row["bound"], ".1f"), row["device"] or "-", str(row["commit"] or "-")[:9], row["status"], row["reason"])
        for row in rows
    ]  # fmt: skip
    columns = ("case", "target", "measured", "baseline", "bound", "device", "commit", "status", "reason")
    return Result(rows, [Table(columns, texts), note])


def _explain(options: Options, device: torch.device) -> Result:
    """What `attend(impl="auto")` would run for one case, and the row of the table that decides."""
    import torch

    from turnout.bench.breakeven import TABLE, deciding_row
    from turnout.bench.cases import parse_cases
    from turnout.ops import explain
    from turnout.train.manifest import device_name

    (case, *more) = parse_cases(options.explain or "", _default(options.what, device))
    if more:
        raise ConfigError(f"--explain takes one case, got {1 + len(more)}")
    dtype, graded = getattr(torch, case.dtype), case.step != "forward"
    # Only shapes decide; one number stands for all.
    q, k = (
        torch.zeros((), dtype=dtype, device=device, requires_grad=graded).expand(case.batch, n, heads, case.dim)
        for n, heads in ((case.rows, case.heads), (case.n, case.kv_heads))
    )
    rows = torch.arange(case.rows, device=device).expand(case.batch, -1)
    everyone = case.rows == case.n
    choice = explain(q, k, k, rows=None if everyone else rows)
    row = deciding_row(case, device_name(device) if device.type == "cuda" else device.type)
    data = {"case": case.to_dict(), "device": device_name(device), "choice": choice, "breakeven_row": row}
    text = "no break-even table is stored" if row is None else ", ".join(f"{key}={value}" for key, value in row.items())
    return Result(
        data, [f"{case} on {data['device']}", f"attend runs {choice}", f"break-even row of {TABLE.name}: {text}"]
    )


def _folder(options: Options) -> Path | None:
    return None if options.out in (None, "-") else Path(str(options.out))


def _written(options: Options, rows: Sequence[Row]) -> str:
    from turnout.bench.rows import append_rows, bench_dir

    if options.out == "-":
        return "nothing was written"
    paths = append_rows(_folder(options) or bench_dir(), rows)
    return f"rows appended to {', '.join(map(str, paths))}"


def _table(rows: Sequence[Row], note: str) -> Table:
    columns = ("case", "arm", "ms", "20 to 80 %", "TFLOP/s", "GB/s", "peak MB", "dense / this")
    return Table(columns, [_texts(row) for row in rows], note)


def _texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    case = row["case"]
    name = f"N={case['n']:,} p={case['p']:.4g} B={case['batch']} {case['step']}"
    if row["ms"] is None:
        return (name, row["arm"], row["status"], row["reason"], "", "", "", "")
    peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
    ratios = ", ".join(f"{arm.removeprefix('dense:')} {value:.2f}x" for arm, value in row.get("ratio", {}).items())
    return (
        name, row["arm"], number(row["ms"], ".4g"), f"{row['ms_p20']:.4g} to {row['ms_p80']:.4g}",
        number(row["tflops"], ".3g"), number(row["gb_s"], ".4g"), peak, row["reason"] or ratios,
    )  # fmt: skip


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
