"""Whether the Triton kernels can run a call, decided without importing Triton."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch

from turnout.ops.attend.call import Call

LEAST_TRITON = (3, 6)
# Gluon, in which the specialised kernel is written, is experimental: only where it was compiled.
GLUON_TRITON = ((3, 6), (3, 7))
LEAST_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 256
LEAST_KEY_BLOCK = 16


def why_not_triton(call: Call) -> str:
    """The first reason why the kernels cannot run this call; "" if there is none."""
    device = call.q.device
    reason = why_not_here(device.type, device.index or 0)
    if reason:
        return reason
    if call.q.dtype == torch.float64:
        return "the kernels compute in float32 and q is float64"
    if call.q.dtype == torch.bfloat16 and device.type != "cuda":
        return "Triton's interpreter computes bfloat16 wrongly"
    if call.q.shape[3] > MAX_HEAD_DIM:
        return f"the head dim is {call.q.shape[3]}, above {MAX_HEAD_DIM}"
    if call.k.shape[1] >= 2**31:
        return f"k has {call.k.shape[1]} positions, which 32 bits do not count"
    return _why_not_keys(call)


def _why_not_keys(call: Call) -> str:
    if call.keys is None:
        return ""
    size = call.key_block
    if size < LEAST_KEY_BLOCK or size & (size - 1):
        return f"key_block={size} is not a power of two from {LEAST_KEY_BLOCK} on"
    return ""


def why_not_here(device: str, index: int) -> str:
    """What is missing on this machine: Triton, a device that it compiles for, or the interpreter in its place."""
    found = _installed()
    if not found:
        return "Triton is not installed"
    if _numbers(found) < LEAST_TRITON:
        return f"Triton is {found}, older than {'.'.join(map(str, LEAST_TRITON))}"
    if device == "cuda":
        if torch.version.cuda is None:
            return "the device is not one of NVIDIA's"
        capability = torch.cuda.get_device_capability(index)
        return "" if capability >= LEAST_CAPABILITY else f"compute capability {capability} is below {LEAST_CAPABILITY}"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return f"the tensors are on {device}, not on a CUDA device, and TRITON_INTERPRET=1 is not set"


@lru_cache
def has_gluon() -> bool:
    """Whether this Triton's Gluon is one that the specialised kernel was compiled with."""
    return _numbers(_installed()) in GLUON_TRITON


def _numbers(found: str) -> tuple[int, ...]:
    return tuple(int(part) for part in found.split(".")[:2])


@lru_cache
def _installed() -> str:
    """Triton's version, "" without Triton. Looking it up reads files, which would cost more than a launch each time."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


# What torch.compiler.assume_constant_result does, without its import of the compiler (and of Triton) right here.
why_not_here._dynamo_marked_constant = True  # type: ignore[attr-defined]
