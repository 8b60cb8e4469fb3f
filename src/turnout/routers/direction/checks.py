"""Conditions on values, looked at where that costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def all_true(condition: Tensor) -> bool:
    """Whether all of it is true; looked at on the CPU only, where nobody waits for it, and not inside a transform."""
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    try:
        return bool(condition.all())
    except RuntimeError:
        # torch.func.vmap has no values to read.
        return True
