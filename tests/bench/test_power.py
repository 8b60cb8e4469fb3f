"""Energy is what the device's own counter moved by, and nothing where there is no counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from turnout.bench.power import NOT_REPORTED, PowerMeter

CPU = torch.device("cpu")


def package(root: Path, number: int, microjoules: str, name: str = "") -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text((name or f"package-{number}") + "\n")
    (folder / "energy_uj").write_text(microjoules)
    return folder / "energy_uj"


def test_a_device_without_a_counter_reports_nothing_and_says_so(tmp_path: Path) -> None:
    with PowerMeter(CPU, tmp_path / "missing") as meter:
        pass
    assert (meter.joules, meter.watts, meter.source) == (None, None, NOT_REPORTED)


def test_packages_are_added_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, "1000000"), package(tmp_path, 1, "500000")
    package(tmp_path, 2, "7", name="psys")
    with PowerMeter(CPU, tmp_path) as meter:
        first.write_text("3000000")
        second.write_text("1000000")
    assert meter.joules == 2.5 and meter.watts is not None and meter.watts > 0
    assert "RAPL" in meter.source


@pytest.mark.parametrize("later", ["5", "900"])
def test_a_counter_that_ran_over_or_stood_still_tells_nothing(tmp_path: Path, later: str) -> None:
    counter = package(tmp_path, 0, "900")
    with PowerMeter(CPU, tmp_path) as meter:
        counter.write_text(later)
    assert meter.joules is None and meter.watts is None


def test_a_counter_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    package(tmp_path, 0, "not a number")
    assert PowerMeter(CPU, tmp_path).source == NOT_REPORTED


@pytest.mark.gpu
def test_a_gpu_that_works_uses_energy() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    with PowerMeter(matrix.device) as meter:
        for _ in range(400):
            matrix = torch.tanh(matrix @ matrix)
        torch.cuda.synchronize()
    # No card draws more than a few kilowatts, whoever else is at work on it.
    assert meter.watts is None or 0 < meter.watts < 3000
