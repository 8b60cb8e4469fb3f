"""Power draw of a GPU while something runs, where the driver's tool reports it."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from types import TracebackType
from typing import Self

import torch

EVERY_MS = 50
LEAST_SAMPLES = 3


class PowerMeter:
    """`with PowerMeter(device) as meter: ...`, then `meter.watts`; None on a CPU and where nothing is reported.

    Samples come from `nvidia-smi` every 50 ms, so that the measured part should last half a second or more.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.watts: float | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        tool = shutil.which("nvidia-smi")
        if self.device.type != "cuda" or tool is None:
            return self
        which = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
        words = [tool, "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", which, "-lms", str(EVERY_MS)]
        try:
            self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self._process = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        lines = self._process.communicate()[0].split()
        samples = [float(line) for line in lines if line.replace(".", "", 1).isdigit()]
        # The first sample may lie before the work began.
        if len(samples) > LEAST_SAMPLES:
            self.watts = statistics.fmean(samples[1:])
