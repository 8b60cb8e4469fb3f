"""Fit the constants of the cost model to measured rows, and say how wrong it is on rows that it has not seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turnout.bench.cases import Case
from turnout.bench.cost_model import CostModel, Work, at_peak, decode_work, layer_work
from turnout.bench.floors import Peaks
from turnout.bench.peaks import find_peaks
from turnout.bench.rows import Row, bench_dir, machine
from turnout.errors import DataError, nearest
from turnout.train.jsonfile import read_json, write_json

FILE = "cost-model.json"
# Fewer cases than this leave nothing to hold out.
LEAST_CASES = 4
SWEEPS = 5000


def calibrate(rows: Sequence[Row]) -> list[CostModel]:
    """One model for each device, dtype and pass with peaks and at least LEAST_CASES measured cases.

    The constants minimise Σ (prediction / measured − 1)² with c ≥ 0. `error` is the median absolute percentage error of
    predictions of each case by constants fitted without any row of that case.
    """
    models = []
    for (device, dtype, step), points in sorted(_points(rows).items()):
        if len({case for case, _, _, _ in points}) < LEAST_CASES:
            continue
        try:
            peaks = find_peaks(list(rows), device, dtype)
        except DataError:
            continue
        error = held_out_error(points, peaks)
        commit = points[-1][3]["commit"]
        models.append(CostModel(device, dtype, step, peaks, fit(points, peaks), error, len(points), commit))
    return models


Point = tuple[Case, Work, float, Row]


def _points(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Point]]:
    """One row of each case and arm, by device, dtype and pass: the fastest of the newest commit that measured it.

    What else runs on a machine only ever adds time, so of repeated rows the fastest is the least disturbed.
    """
    best: dict[tuple[Any, ...], Point] = {}
    for row in rows:
        arm = _arm(row)
        if arm is None or row["status"] != "ok" or not row["ms"]:
            continue
        case = Case(**row["case"])
        decode = row["kind"] == "decode"
        work = decode_work(case, arm, weights=False) if decode else layer_work(case, arm)
        key = (machine(row), row["kind"], case, row["arm"])
        if key not in best or best[key][3]["commit"] != row["commit"] or row["ms"] < best[key][2]:
            best[key] = (case, work, row["ms"], row)
    found: dict[tuple[str, str, str], list[Point]] = {}
    for (device, kind, case, _), point in best.items():
        found.setdefault((device, case.dtype, "decode" if kind == "decode" else case.step), []).append(point)
    return found


def _arm(row: Mapping[str, Any]) -> str | None:
    """Which arm of the model a row measures: one dense arm, so that none counts twice."""
    if row["kind"] == "layer":
        known = {"dense:sdpa": "dense", "dense:flash": "dense", "local": "local", "routed:auto": "routed"}
    elif row["kind"] == "decode":
        known = {"dense:sdpa": "dense", "dense:flash": "dense", "routed:auto": "routed"}
    else:
        return None
    return known.get(row["arm"])


def fit(points: Sequence[Point], peaks: Peaks) -> Work:
    """Constants ≥ 0 of least squared relative error, by coordinate descent."""
    scaled = np.array([[part / (1e-3 * ms) for part in at_peak(work, peaks)] for _, work, ms, _ in points])
    size = np.sqrt((scaled**2).sum(0))
    used = size > 0
    columns = scaled[:, used] / size[used]
    gram, target = columns.T @ columns, columns.sum(0)
    c = np.zeros(columns.shape[1])
    for _ in range(SWEEPS):
        before = c.copy()
        for i in range(len(c)):
            c[i] = max(0.0, c[i] + (target[i] - gram[i] @ c) / gram[i, i])
        if np.abs(c - before).max(initial=0.0) <= 1e-10 * max(1.0, np.abs(c).max(initial=0.0)):
            break
    whole = np.zeros(len(size))
    whole[used] = c / size[used]
    return Work(*map(float, whole))


def held_out_error(points: Sequence[Point], peaks: Peaks) -> float:
    """Median over rows of |predicted / measured − 1| in percent, each case predicted without its own rows."""
    errors = []
    for left_out in {case for case, _, _, _ in points}:
        constants = fit([point for point in points if point[0] != left_out], peaks)
        for case, work, ms, _ in points:
            if case == left_out:
                seconds = sum(c * s for c, s in zip(constants, at_peak(work, peaks), strict=True))
                errors.append(abs(1e3 * seconds / ms - 1))
    return 100 * statistics.median(errors)


def write_models(models: Sequence[CostModel], folder: Path | None = None) -> Path:
    """Store models, replacing those of the same device, dtype and pass.

    Raises:
        DataError: there is none, or the file cannot be written.
    """
    if not models:
        raise DataError(
            f"no device has peaks and {LEAST_CASES} measured cases of one dtype and pass; run turnout plan --measure"
        )
    folder = folder or bench_dir()
    new = {(model.device, model.dtype, model.step) for model in models}
    kept = [model for model in read_models(folder) if (model.device, model.dtype, model.step) not in new]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    write_json(path, [to_dict(model) for model in [*kept, *models]])
    return path


def to_dict(model: CostModel) -> dict[str, Any]:
    """Plain fields of a model."""
    return {
        "device": model.device, "dtype": model.dtype, "step": model.step, "peaks": model.peaks._asdict(),
        "constants": model.constants._asdict(), "error_percent": model.error, "n_rows": model.n_rows,
        "commit": model.commit,
    }  # fmt: skip


def read_models(folder: Path | None = None) -> list[CostModel]:
    """Stored models, [] when there are none.

    Raises:
        DataError: the file is damaged.
    """
    path = (folder or bench_dir()) / FILE
    if not path.exists():
        return []
    try:
        return [
            CostModel(
                entry["device"], entry["dtype"], entry["step"], Peaks(**entry["peaks"]), Work(**entry["constants"]),
                entry["error_percent"], entry["n_rows"], entry["commit"],
            )
            for entry in read_json(path)
        ]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no cost model ({error}); write it again: turnout plan --calibrate") from error


def find_models(models: Sequence[CostModel], device: str, dtype: str) -> dict[str, CostModel]:
    """The models of a device (part of its name is enough) and dtype, by pass.

    Raises:
        DataError: there is none; names what there is.
    """
    names = {model.device for model in models}
    chosen = device if device in names else next((name for name in sorted(names) if device.lower() in name.lower()), "")
    found = {model.step: model for model in models if model.device == chosen and model.dtype == dtype}
    if not found:
        known = [f"{model.device}, {model.dtype}" for model in models]
        raise DataError(
            f"no cost model of {device} in {dtype}{nearest(f'{device}, {dtype}', known)}; "
            "measure and fit one on that device: turnout plan --measure"
        )
    return found
