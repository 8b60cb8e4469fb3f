"""The target table: a verdict for every row, by the newest good measurement, with the bound that the peaks allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.fake_rows import peak_rows, row
from turnout.bench.cases import Case
from turnout.bench.floors import decode_bytes, least_bytes, useful_flops
from turnout.bench.targets import TARGETS, cases_to_measure, target_rows

FIRST, BACKWARD, DECODE = TARGETS[0], TARGETS[5], TARGETS[9]


def verdict(name: str, rows: list) -> dict:
    (found,) = [entry for entry in target_rows(rows) if entry["case"] == name]
    return found


def test_without_a_measurement_every_row_is_there_and_says_what_would_measure_it() -> None:
    rows = target_rows([])
    assert [entry["case"] for entry in rows] == [target.name for target in TARGETS] and len(rows) == 15
    assert all(entry["measured"] is None and "turnout bench targets --measure" in entry["status"] for entry in rows)
    assert {*rows[0]} == {"case", "target", "measured", "baseline", "device", "commit", "bound", "status"}


@pytest.mark.parametrize(("ratio", "status"), [(7.0, "reached"), (6.4, "missed")])
def test_a_ratio_is_judged_and_bounded_by_operations_or_bytes(ratio: float, status: str) -> None:
    good = row("kernel", FIRST.case, FIRST.arm, 2.0, ratio={"dense:cudnn": ratio, "dense:flash": 99.0})
    found = verdict(FIRST.name, [*peak_rows(), good])
    assert (found["measured"], found["status"], found["device"], found["commit"]) == (
        ratio,
        status,
        "Testor 9",
        "c0ffee",
    )
    floor = 1e3 * max(useful_flops(FIRST.case) / 100e12, least_bytes(FIRST.case) / 1e12)
    assert found["bound"] == pytest.approx(2.0 * ratio / floor)


def test_the_newest_good_row_counts_and_failed_checks_other_devices_and_other_cases_do_not() -> None:
    def of(ratio: float, **changes: object) -> dict:
        return row("kernel", FIRST.case, FIRST.arm, 1.0, **{"ratio": {"dense:cudnn": ratio}, **changes})

    other = row("kernel", replace(FIRST.case, n=99), FIRST.arm, 1.0, ratio={"dense:cudnn": 50.0})
    rows = [
        of(1.0),
        of(2.0),
        of(3.0, status="wrong"),
        of(4.0, device_kind="cpu"),
        {**of(5.0), "arm": "routed:auto"},
        other,
    ]
    found = verdict(FIRST.name, rows)
    assert found["measured"] == 2.0 and found["bound"] is None


def test_backward_throughput_is_what_the_backward_pass_adds() -> None:
    forward = replace(BACKWARD.case, step="forward")
    rows = [row("kernel", BACKWARD.case, BACKWARD.arm, 5.0), row("kernel", forward, BACKWARD.arm, 1.0)]
    found = verdict(BACKWARD.name, [*rows, *peak_rows()])
    assert found["measured"] == pytest.approx(2.5 * useful_flops(forward) / 4e-3 / 1e12)
    assert found["bound"] == 100.0 and verdict(BACKWARD.name, rows[:1])["measured"] is None


def test_decoding_is_compared_with_the_fastest_dense_arm() -> None:
    good = row("decode", DECODE.case, DECODE.arm, 0.1, ratio={"dense:flash": 9.0, "dense:all gates open": 6.0})
    found = verdict(DECODE.name, [good, *peak_rows()])
    assert found["measured"] == 6.0 and found["status"] == "reached"
    assert found["bound"] == pytest.approx(0.6 / (1e3 * decode_bytes(DECODE.case) / 1e12))


def test_never_slower_takes_the_worst_case_and_break_even_the_smallest_length() -> None:
    rows = [
        row("kernel", Case(n=n, p=p), "routed:auto", 1.0, ratio={"dense:flash": ratio, "dense:cudnn": 9.0})
        for n, p, ratio in ((512, 1.0, 0.5), (512, 1.0, 0.97), (2048, 0.5, 1.6))
    ]
    rows += [row("breakeven", Case(n=n, p=1.0), "triton", None, break_even=p) for n, p in ((512, 0.9), (2048, 0.8))]
    assert verdict(TARGETS[6].name, rows)["measured"] == 0.97
    assert verdict(TARGETS[7].name, rows)["measured"] is None
    found = verdict(TARGETS[8].name, rows)
    assert found["measured"] == 0.8 and found["status"] == "missed"


def test_what_to_measure_depends_on_the_device() -> None:
    (cpu,) = cases_to_measure(torch.device("cpu"))
    assert cpu[0] == "layer" and cpu[1].n == 2048 and cpu[1].dtype == "float32"
    gpu = cases_to_measure(torch.device("cuda"))
    assert len(gpu) == 12 and len(set(gpu)) == 12
