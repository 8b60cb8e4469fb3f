"""Energy that a device used while something ran, read from the counter it keeps itself.

An NVIDIA GPU counts millijoules since its driver was loaded (NVML, Volta and later), a CPU microjoules a package
(RAPL, where Linux shows it to this user). Both count everything that runs on the device, not this process alone.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

NOT_REPORTED = "not reported by this device"
# The GPU's counter moves about every 0.1 s: a shorter interval would be known to less than a tenth.
LEAST_SECONDS = 1.0
POWERCAP = Path("/sys/class/powercap")

Counter = Callable[[], float]


class PowerMeter:
    """`with PowerMeter(device) as meter: ...`, then `meter.joules` and `meter.watts`; None where nothing is reported.

    Args:
        device: whose energy is read; work queued on it must be over when the block is left.
        powercap: folder of the CPU's counters.

    Attributes:
        source: which counter is read, in words; `NOT_REPORTED` when there is none.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self.joules: float | None = None
        self.watts: float | None = None
        self.source, self._counter = _gpu_counter() if device.type == "cuda" else _cpu_counter(powercap)
        self._began = self._first = 0.0

    def __enter__(self) -> Self:
        if self._counter is not None:
            self._began, self._first = time.perf_counter(), self._counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counter is None:
            return
        used, seconds = self._counter() - self._first, time.perf_counter() - self._began
        # A counter that ran over (RAPL's does after minutes to hours) or did not move tells nothing.
        if used > 0:
            self.joules, self.watts = used, used / seconds


def _gpu_counter() -> tuple[str, Counter | None]:
    """NVML's energy counter of the current GPU, in joules."""
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return NOT_REPORTED, None
    name = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    if failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return NOT_REPORTED, None

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return "energy counter of the GPU (NVML)", read


def _cpu_counter(powercap: Path) -> tuple[str, Counter | None]:
    """Sum of the packages' RAPL counters, in joules."""
    files = [
        domain / "energy_uj"
        for domain in sorted(powercap.glob("intel-rapl:*"))
        if (domain / "name").is_file() and (domain / "name").read_text().startswith("package")
    ]

    def read() -> float:
        return sum(int(file.read_text()) for file in files) / 1e6

    try:
        read()
    except (OSError, ValueError):
        # Linux shows the counters to root alone, unless the administrator says otherwise.
        return NOT_REPORTED, None
    return ("energy counter of the CPU packages (RAPL)", read) if files else (NOT_REPORTED, None)
