"""When inference takes the kernels of `turnout.ops.inference_kernels` instead of torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.ops.attend.triton.support import why_not_here


def one_pass(x: Tensor) -> bool:
    """Whether `x` is on a GPU with Triton, contiguous in its last axis, and eager code without gradients reads it."""
    return (
        x.is_cuda
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cuda")
        and x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and x.stride(-1) == 1
        and not why_not_here("cuda", x.device.index or 0)
    )
