"""The target table of the kernels: what each row must reach, what was measured, and what physics allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from turnout.bench.cases import PASSES, Case
from turnout.bench.dispatch import default_cases
from turnout.bench.floors import BACKWARD, Peaks, decode_bytes, floor_ms, least_bytes, useful_flops
from turnout.bench.peaks import find_peaks
from turnout.bench.rows import Row, machine, same_case
from turnout.errors import DataError

BOTH = "forward+backward"
PASS_NAMES = {"forward": "forward", BOTH: "forward + backward"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One row of the table.

    Attributes:
        name: the case, in words.
        kind: of the measured rows: kernel, layer, block, decode, dispatch or breakeven; worst = of all kernel rows.
        case: what is measured.
        least: the number to reach; unit: "x" (a ratio), "TFLOP/s" or "p".
        baseline: the dense arm; "fastest dense" = the best of the run.
        arm: the routed arm. Kernel rows take the arm with the router inside.
        device_kind: where it must be measured.
    """

    name: str
    kind: str
    case: Case
    least: float
    baseline: str
    unit: str = "x"
    arm: str = "router+auto"
    device_kind: str = "cuda"


def _wide(n: int, batch: int) -> Case:
    return Case(n=n, p=1 / 4, batch=batch, dim=64, step=BOTH, part="block")


TARGETS = (
    Target(
        name="forward, N=2,048, p=1/16", kind="kernel", case=Case(n=2048, p=1 / 16, batch=16), least=6.5,
        baseline="dense:cudnn",
    ),
    Target(
        name="forward, N=16,384, p=1/16", kind="kernel", case=Case(n=16384, p=1 / 16, batch=2), least=12,
        baseline="dense:cudnn",
    ),
    Target(
        name="forward, N=65,536, p=1/256", kind="kernel", case=Case(n=65536, p=1 / 256), least=120,
        baseline="dense:cudnn",
    ),
    Target(
        name="forward + backward, N=8,192, p=1/8", kind="kernel", case=Case(n=8192, p=1 / 8, batch=4, step=BOTH),
        least=4, baseline="dense:cudnn",
    ),
    Target(
        name="forward + backward, N=32,768, p=1/16", kind="kernel", case=Case(n=32768, p=1 / 16, step=BOTH),
        least=8, baseline="dense:cudnn",
    ),
    Target(
        name="backward throughput, d=128, N=16,384, p=1/4", kind="kernel",
        case=Case(n=16384, p=1 / 4, batch=2, step=BOTH), least=300, baseline="", unit="TFLOP/s", arm="routed:auto",
    ),
    *(
        Target(
            name=name + PASS_NAMES[step], kind=kind, case=Case(n=512, p=1.0, batch=64, step=step), least=0.95,
            baseline="fastest dense", arm="routed:auto",
        )
        for kind, name in (
            ("dispatch", "never slower than dense, by dispatch: a mixer against itself, dense; smallest ratio, "),
            ("worst", "the same of the operator alone, which has only the queries taken, "),
        )
        for step in PASSES
    ),
    Target(
        name="break-even p, forward (smallest over lengths)", kind="breakeven", case=Case(n=512, p=1.0), least=0.85,
        baseline="fastest dense", unit="p", arm="triton",
    ),
    Target(
        name="decode, batch 8, N=32,768, 90 % of tokens local", kind="decode", case=Case(n=32768, p=0.1, batch=8),
        least=5.5, baseline="fastest dense", arm="routed:auto",
    ),
    Target(
        name="training block, E=1,024, p=1/4, N=8,192", kind="layer", case=_wide(8192, 4), least=1.5,
        baseline="dense:flash", arm="routed:auto",
    ),
    Target(
        name="training block, E=1,024, p=1/4, N=32,768", kind="layer", case=_wide(32768, 1), least=2.3,
        baseline="dense:flash", arm="routed:auto",
    ),
    *(
        Target(
            name=f"the same compiled, 65,536 tokens, N={n:,}", kind="block", case=_wide(n, 65536 // n), least=least,
            baseline="dense:flash", arm="routed:auto",
        )
        for n, least in ((8192, 1.5), (32768, 2.3))
    ),
    Target(
        name="CPU, N=2,048, p=1/64, mixer against mixer", kind="layer",
        case=Case(n=2048, p=1 / 64, heads=4, kv_heads=4, dim=64, dtype="float32"), least=8, baseline="dense:sdpa",
        arm="routed:auto", device_kind="cpu",
    ),
)  # fmt: skip


def target_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row of the table {case, target, measured, baseline, device, commit, bound, status, reason}.

    `bound` is what the floor would give: max(FLOPs / matrix peak, bytes / bandwidth) with the peaks measured on the
    same device, against the same baseline. A target without a measured row says what would measure it. `reason` says
    of a missed one what its time is spent on, from the profile in the measured row.
    """
    return [_judge(target, rows) for target in TARGETS]


def _judge(target: Target, rows: Sequence[Row]) -> dict[str, Any]:
    found = (_backward if target.unit == "TFLOP/s" else _JUDGES.get(target.kind, _ratio))(target, rows)
    where = "a GPU" if target.device_kind == "cuda" else "a CPU"
    entry = {
        "case": target.name, "target": f"≥ {target.least:g} {target.unit}", "measured": None,
        "baseline": target.baseline or None, "device": None, "commit": None, "bound": None, "reason": "",
        "status": f"not measured; needs {where}: turnout bench targets --measure",
    }  # fmt: skip
    if found is None:
        return entry
    measured, row, baseline = found
    reached = "reached" if measured >= target.least else "missed"
    bound = _bound(target, rows, row, baseline)
    return entry | {
        "measured": measured, "device": row["device"], "commit": row["commit"], "bound": bound, "status": reached,
        "reason": "" if reached == "reached" else _above(target, bound) + _reason(target, rows, row),
    }  # fmt: skip


def _above(target: Target, bound: float | None) -> str:
    """A target that physics does not allow, with the router's own reading inside, is named as such."""
    return "" if bound is None or bound >= target.least else f"the floor itself would give {bound:.1f}; "


def _reason(target: Target, rows: Sequence[Row], row: Row) -> str:
    """Where the time of a missed row goes: its kernels (or operators), and what the floor leaves of them."""
    case = row["case"]
    where = f"N={case['n']}, p={case['p']:.3g}: " if target.kind in ("worst", "dispatch") else ""
    if target.kind == "breakeven":
        where = f"N={case['n']}: "
        # The break-even itself is no call: that of the same length with all rows is.
        row = next((other for other in reversed(rows) if _is_whole(other, case) and other.get("kernels")), row)
    parts = row.get("kernels")
    if not parts:
        return where + "no profile in the row; turnout bench targets --measure"
    total = sum(part["us"] for part in parts)
    longest = ", ".join(f"{_short(part['name'])} {part['us']:.0f}" for part in parts[:4])
    return f"{where}{total:.0f} us: {longest}{_floor_text(target, rows, row)}"


def _floor_text(target: Target, rows: Sequence[Row], row: Row) -> str:
    try:
        peaks = find_peaks(list(rows), machine(row), row["case"]["dtype"])
    except DataError:
        return ""
    if row["kind"] != "kernel":
        return f"; its matrix products at the peak {1e6 * row['flops'] / peaks.flops:.0f}" if row["flops"] else ""
    case = Case(**row["case"])
    products, memory = useful_flops(case) / peaks.flops, _bytes_of(row) / peaks.bandwidth
    return f"; floor {1e6 * products:.0f} by products, {1e6 * memory:.0f} by memory"


def _is_whole(row: Row, case: dict[str, Any]) -> bool:
    same = row["kind"] == "kernel" and row["arm"] == "routed:auto" and row["status"] == "ok"
    return (
        same and row["case"]["p"] == 1 and all(row["case"][key] == case[key] for key in ("n", "step", "dim", "dtype"))
    )


def _short(name: str) -> str:
    """A kernel's name without its namespaces and template arguments."""
    return re.split(r"[<(]", name.removeprefix("void "))[0].split("::")[-1][:40]


def _bytes_of(row: Row) -> float:
    """What a kernel row must move; with a router also the router's input."""
    case = Case(**row["case"])
    router = case.batch * case.n * case.width * case.item_size if row["arm"].startswith("router+") else 0
    return least_bytes(case) + router


Found = tuple[float, Row, Row | None]


def _of(target: Target, rows: Sequence[Row], arm: str, case: Case | None = None) -> Row | None:
    """The newest good row of an arm, in the kernel, layer or decode rows of the target."""
    plain = (case or target.case).to_dict()
    for row in reversed(rows):
        good = row["status"] == "ok" and row["device_kind"] == target.device_kind and row["ms"]
        if good and row["kind"] == target.kind and row["arm"] == arm and same_case(row, plain):
            return row
    return None


def _ratio(target: Target, rows: Sequence[Row]) -> Found | None:
    routed = _of(target, rows, target.arm)
    if routed is None or not routed.get("ratio"):
        return None
    ratios = routed["ratio"]
    arm = min(ratios, key=lambda name: ratios[name]) if target.baseline == "fastest dense" else target.baseline
    if arm not in ratios:
        return None
    return ratios[arm], routed, {"ms": routed["ms"] * ratios[arm]}


def _backward(target: Target, rows: Sequence[Row]) -> Found | None:
    both = _of(target, rows, target.arm)
    forward = _of(target, rows, target.arm, replace(target.case, step="forward"))
    if both is None or forward is None or both["ms"] <= forward["ms"]:
        return None
    useful = useful_flops(target.case) * BACKWARD / (1 + BACKWARD)
    return useful / (both["ms"] - forward["ms"]) / 1e9, both, None


def _worst(target: Target, rows: Sequence[Row]) -> Found | None:
    """The smallest ratio to the fastest dense arm over the newest row of every case."""
    newest: dict[str, Row] = {}
    kind = "kernel" if target.kind == "worst" else target.kind
    for row in rows:
        good = row["kind"] == kind and row["status"] == "ok" and row["device_kind"] == target.device_kind
        if good and row["arm"] == target.arm and row["case"]["step"] == target.case.step and row["ratio"]:
            newest[str(row["case"])] = row
    if not newest:
        return None
    worst = min(newest.values(), key=lambda row: min(row["ratio"].values()))
    return min(worst["ratio"].values()), worst, None


def _break_even(target: Target, rows: Sequence[Row]) -> Found | None:
    newest = {
        row["case"]["n"]: row
        for row in rows
        if row["kind"] == "breakeven" and row["device_kind"] == target.device_kind and row["break_even"] is not None
        and row["case"]["step"] == target.case.step
    }  # fmt: skip
    if not newest:
        return None
    worst = min(newest.values(), key=lambda row: row["break_even"])
    return worst["break_even"], worst, None


_JUDGES: dict[str, Callable[[Target, Sequence[Row]], Found | None]] = {
    "worst": _worst, "dispatch": _worst, "breakeven": _break_even,
}  # fmt: skip


def _bound(target: Target, rows: Sequence[Row], row: Row, baseline: Row | None) -> float | None:
    """The same number if the routed arm ran at its floor; None where no peak was measured or no floor is defined."""
    try:
        peaks = find_peaks(list(rows), machine(row), target.case.dtype)
    except DataError:
        return None
    if target.unit == "TFLOP/s":
        return peaks.flops / 1e12
    if baseline is None or target.kind in ("layer", "block"):
        # A layer's floor is that of its matrix products.
        return _layer_bound(row, baseline, peaks)
    if target.kind == "decode":
        return baseline["ms"] / floor_ms(0.0, decode_bytes(target.case), peaks)
    return baseline["ms"] / floor_ms(useful_flops(target.case), _bytes_of(row), peaks)


def _layer_bound(row: Row, baseline: Row | None, peaks: Peaks) -> float | None:
    return None if baseline is None else baseline["ms"] / (1e3 * row["flops"] / peaks.flops)


def cases_to_measure(device: torch.device) -> list[tuple[str, Case]]:
    """(kind, case) of everything that the table reads and this device can measure; the forward beside each backward."""
    found: list[tuple[str, Case]] = []
    for target in TARGETS:
        if target.device_kind != device.type or target.kind in ("dispatch", "breakeven"):
            continue
        # The worst of all rows is that of short sequences with every row: at least its profile is there.
        found.append(("kernel" if target.kind == "worst" else target.kind, target.case))
        if target.unit == "TFLOP/s":
            found.append((target.kind, replace(target.case, step="forward")))
    if device.type == "cuda":
        found += [("dispatch", case) for case in default_cases()]
    return list(dict.fromkeys(found))
