"""The target table: a verdict for every row, by the newest good measurement, with the bound that the peaks allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.fake_rows import peak_rows, row
from turnout.bench.cases import Case
from turnout.bench.floors import decode_bytes, least_bytes, useful_flops
from turnout.bench.targets import TARGETS, cases_to_measure, target_rows

FIRST, BACKWARD = TARGETS[0], TARGETS[5]
DISPATCH, WORST, WORST_BOTH = TARGETS[6], TARGETS[8], TARGETS[9]
(BREAK_EVEN,) = (target for target in TARGETS if target.kind == "breakeven")
(DECODE,) = (target for target in TARGETS if target.kind == "decode")


def verdict(name: str, rows: list) -> dict:
    (found,) = [entry for entry in target_rows(rows) if entry["case"] == name]
    return found


def test_without_a_measurement_every_row_is_there_and_says_what_would_measure_it() -> None:
    rows = target_rows([])
    assert [entry["case"] for entry in rows] == [target.name for target in TARGETS] and len(rows) == 17
    assert all(entry["measured"] is None and "turnout bench targets --measure" in entry["status"] for entry in rows)
    assert {*rows[0]} == {"case", "target", "measured", "baseline", "device", "commit", "bound", "status", "reason"}


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
    # The router's input is read too.
    n_bytes = least_bytes(FIRST.case) + FIRST.case.batch * FIRST.case.n * FIRST.case.width * 2
    floor = 1e3 * max(useful_flops(FIRST.case) / 100e12, n_bytes / 1e12)
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
    rows.append(row("dispatch", Case(n=512, p=0.5), "routed:auto", 1.0, ratio={"dense:cudnn": 0.96}))
    assert verdict(DISPATCH.name, rows)["measured"] == 0.96
    assert verdict(WORST.name, rows)["measured"] == 0.97
    assert verdict(WORST_BOTH.name, rows)["measured"] is None
    found = verdict(BREAK_EVEN.name, rows)
    assert found["measured"] == 0.8 and found["status"] == "missed"
    assert found["reason"].startswith("N=2048: ") and "no profile" in found["reason"]


def test_a_missed_row_says_what_its_time_is_spent_on_and_a_reached_one_nothing() -> None:
    parts = [{"name": "void at::native::fill<4>(int)", "us": 60.0, "calls": 1}, {"name": "b", "us": 40.0, "calls": 2}]
    for ratio, reason in ((6.0, "100 us: fill 60, b 40; floor"), (7.0, "")):
        good = row("kernel", FIRST.case, FIRST.arm, 2.0, ratio={"dense:cudnn": ratio}, kernels=parts)
        found = verdict(FIRST.name, [*peak_rows(), good])["reason"]
        assert found.startswith(reason) and bool(found) == bool(reason)


def test_what_to_measure_depends_on_the_device() -> None:
    (cpu,) = cases_to_measure(torch.device("cpu"))
    assert cpu[0] == "layer" and cpu[1].n == 2048 and cpu[1].dtype == "float32"
    gpu = cases_to_measure(torch.device("cuda"))
    assert len(gpu) == len(set(gpu)) == 14 + 40
    assert sum(kind == "dispatch" for kind, _ in gpu) == 40
