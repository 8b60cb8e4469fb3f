"""Compiles the attention kernels for a GPU that is not there, and says what would not fit it.

In a module of its own, so that processes can import it: Triton compiles one kernel at a time in a process.

Axes: B batch, R query rows, S keys, H query heads, G kv heads.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from turnout.ops import scan_kernel, suppress_kernel
from turnout.ops.attend.triton import backward, forward, singles
from turnout.ops.attend.triton.configs import (
    DKDV_WITH_OPTIONS,
    DKDV_WITH_SUMS,
    DQ_WITH_OPTIONS,
    LOW,
    SPECIALISED,
    Plan,
    Tile,
    numbers_of,
)
from turnout.ops.attend.triton.job import Job

# Bytes of shared memory that one program may use; the tables for "ampere" keep to what the smallest of its parts has.
LIMITS = {90: 227 * 1024, 80: 99 * 1024}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.float64: "*fp64",
}
B, R, S, H, G = 1, 64, 256, 4, 2
ABSENT = dict.fromkeys(("starts", "total", "rates", "blocks", "n_blocks", "directions", "suppress"))
# Keys and rows of a block: larger than some tiles, and the smallest, to which tiles are cut.
BLOCKS = {"blocks": (64, 32), "small blocks": (16, 1)}
NUMBERS = {"window": 0, "sinks": 0, "scale": 0.1, "key_block": 1, "row_block": 1}


class Order(NamedTuple):
    """One kernel ("forward", "dq", "dkdv", "uncut") to compile: a tile, an option or "", a capability."""

    kernel: str
    tile: Tile
    itemsize: int
    width: int
    option: str
    capability: int


def options_of(name: str, width: int) -> dict[str, Any]:
    if name == "decay":
        return {"total": torch.zeros(B, S, H, dtype=torch.float64)}
    if name == "window, sinks and starts":
        return {"window": 100, "sinks": 4, "starts": torch.zeros(B, 1, R, dtype=torch.int64)}
    if name == "rates":
        return {"rates": torch.zeros(H)}
    if name.endswith(" and starts") and "," not in name:
        return options_of(name.removesuffix(" and starts"), width) | {"starts": torch.zeros(B, 1, R, dtype=torch.int64)}
    if name == "window":
        return {"window": 100}
    if name == "directions":
        return {"directions": torch.zeros(H, 4, width), "suppress": torch.zeros(B, R, H, 4)}
    if name in BLOCKS:
        key_block, row_block = BLOCKS[name]
        lists = torch.zeros(B, R // row_block, G, 4, dtype=torch.int32)
        counts = lists[..., 0].contiguous()
        return {"blocks": lists, "n_blocks": counts, "key_block": key_block, "row_block": row_block}
    if name == "everything":
        every = ("decay", "window, sinks and starts", "blocks", "directions")
        return {key: value for one in every for key, value in options_of(one, width).items()}
    return {}


def launch_of(order: Order) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """What the operator would launch: the kernel, its arguments, warps and stages."""
    found: list[tuple[Any, dict[str, Any], dict[str, int]]] = []

    def record(kernel: Any, n_programs: int, arguments: dict[str, Any], *, warps: int, stages: int = 1) -> None:
        specialised = order.kernel == "forward" and order.tile.tma == SPECIALISED
        if kernel.__name__ == ("hopper_kernel" if specialised else f"{order.kernel}_kernel"):
            found.append((kernel, arguments, {"num_warps": warps, "num_stages": stages}))

    forward.run = backward.run = suppress_kernel.run = record
    backward.capability = suppress_kernel.capability = lambda device: (order.capability // 10, order.capability % 10)
    dtype = torch.float32 if order.itemsize == 4 else torch.bfloat16
    tile = order.tile
    # Grouped heads have low tiles of their own, and so have those with several decays.
    tall = tile.tma == SPECIALISED and tile.keys != LOW.keys
    sole = (
        tile in (*DQ_WITH_OPTIONS.values(), *DKDV_WITH_OPTIONS.values(), *DKDV_WITH_SUMS.values())
        and "starts" in order.option
    )
    groups = H if order.option == "directions" or tall or sole else G
    q, k = torch.zeros(B, R, H, order.width, dtype=dtype), torch.zeros(B, S, groups, order.width, dtype=dtype)
    tiles = numbers_of(Plan(*[replace(tile, splits=tile.splits or 1)] * 3))
    rows = torch.zeros(B, 1, R, dtype=torch.int64)
    job = Job(q=q, k=k, v=k, rows=rows, **{**ABSENT, **NUMBERS, **options_of(order.option, order.width)}, tiles=tiles)
    _, along, lse = forward.forward(job)
    # Where dQ is wanted, its kernel restores the gradient itself.
    alone = order.kernel == "uncut"
    backward.backward(job, q, q, along, lse, need_q=not alone, need_kv=True, need_decay=job.total is not None)
    return found[0]


def source_of(kernel: Any, arguments: dict[str, Any]) -> Any:
    """The kernel with the types of its arguments, and the divisibility by 16 that a launch would find."""
    signature, constants, divisible = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            divisible[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[parameter.name] = f"tensordesc<{TYPES[value.base.dtype][1:]}{list(value.block_shape)}>"
        elif isinstance(value, GluonDescriptor):
            what = f"{TYPES[value.base.dtype][1:]}{list(value.block_shape)}"
            signature[parameter.name] = f"tensordesc<{what},{value.layout!r}>"
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if not parameter.do_not_specialize and value % 16 == 0:
                divisible[(place,)] = [["tt.divisibility", 16]]
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    return source(kernel, signature, constants, divisible)


def what_does_not_fit(order: Order) -> str:
    """Compile: "" if the kernel keeps to the shared memory of its device and spills no register."""
    return misfit(*launch_of(order), order.capability, str(order))


def misfit(kernel: Any, arguments: dict[str, Any], options: dict[str, int], capability: int, name: str) -> str:
    """The same for a kernel with its arguments."""
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source_of(kernel, arguments), target=target, options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        report = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+).*LOCAL:(\d+)", report)
    assert found, report
    if found.groups() != ("0", "0"):
        return f"{name} spills {found.group(1)} bytes a thread"
    if compiled.metadata.shared > LIMITS[capability]:
        return f"{name} needs {compiled.metadata.shared} bytes of shared memory, above {LIMITS[capability]}"
    return ""


def scan_misfits(capability: int) -> list[str]:
    """What does not fit of the selective scan's kernels, in either precision of products."""
    found = []
    sizes = {"H": 16, "P": 16, "N": 16, "Q": scan_kernel.CHUNK, "T": 512, "first_ptr": None, "dfirst_ptr": None}
    for kernel in (scan_kernel._forward, scan_kernel._backward):
        for precision in ("ieee", "tf32"):
            known = {**sizes, "PRECISION": precision}
            arguments = {p.name: known[p.name] if p.name in known else torch.zeros(1) for p in kernel.params}
            options = {"num_warps": scan_kernel.WARPS, "num_stages": 3}
            found.append(misfit(kernel, arguments, options, capability, f"{kernel.__name__} {precision}"))
    return [words for words in found if words]


def singles_misfits(capability: int) -> list[str]:
    """What does not fit of the kernels of a window and single keys, heads grouped or not."""
    found: list[str] = []

    def record(kernel: Any, n_programs: int, arguments: dict[str, Any], *, warps: int, stages: int = 1) -> None:
        options = {"num_warps": warps, "num_stages": stages}
        name = f"{kernel.__name__} head dim {arguments['D']}, {arguments['KV_HEADS']} kv heads"
        found.append(misfit(kernel, arguments, options, capability, name))

    singles.run = record
    singles.forward = lambda job, keep: (job.q.clone(), job.q, torch.zeros(B, job.kv_heads, job.n_packed))
    singles.backward = lambda job, *_, **__: tuple(torch.zeros_like(x) for x in (job.q, job.k, job.k))
    for dim, groups, dtype in ((128, G, torch.bfloat16), (256, H, torch.float32)):
        q, k = torch.zeros(B, R, H, dim, dtype=dtype), torch.zeros(B, S, groups, dim, dtype=dtype)
        keys, mark = torch.zeros(B, R, 1 if groups == G else G, 4, dtype=torch.int32), torch.zeros(H)
        keys = keys if groups == G else keys.repeat(1, 1, groups // G, 1)
        o, lse = singles.singles_attend(q, k, k, keys, mark, 16)
        singles.singles_backward(q, o, lse, q, k, k, keys, mark, 16)
    return [words for words in found if words]
