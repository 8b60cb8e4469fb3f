"""The decode kernels compile ahead of time for GPUs that are not here: shared memory in the limit, nothing spilled."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from turnout.ops.attend.triton import decode
from turnout.ops.attend.triton.decode import CONFIGS

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

# Bytes of shared memory that one block may have.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
POINTERS = {2: "*bf16", 4: "*fp32"}
EVERYTHING = {"PAGE": 64, "DECAY": True, "WINDOW": 99, "SINKS": 3}


class Needs(NamedTuple):
    """Shared memory in bytes, registers a thread, bytes of spilled registers a thread."""

    shared: int
    registers: int
    spilled: int


def build(kernel: object, pointers: dict[str, str], constants: dict[str, object], arch: int, **options: int) -> Needs:
    """Compile one kernel; pointers and strides are taken as divisible by 16, as real ones are."""
    names = kernel.arg_names  # type: ignore[attr-defined]
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "fp32" if name == "scale" else "i32")
        for name in names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name in pointers or re.fullmatch(r"s[qkvo]_[bshg]", name)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return Needs(compiled.metadata.shared, *_usage(compiled.asm["cubin"]))


def _usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    if found is None:
        raise ValueError(f"no resource usage in {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def build_split(size: int, dim: int, heads: int, arch: int, **changes: object) -> Needs:
    """The split kernel for elements of `size` bytes; `heads` query heads share a kv head."""
    width = decode.padded(dim)
    config = CONFIGS[size, width]
    element = POINTERS[size]
    pointers = {"q": element, "k": element, "v": element, "rows": "*i64", "table": "*i32", "decay": "*fp32",
                "cum": "*i32", "part": "*fp32", "lse": "*fp32"}  # fmt: skip
    constants = {
        "SIZE": heads, "DIM": dim, "M": max(16, triton.next_power_of_2(heads)), "BD": width, "BLOCK": config.block,
        "WINDOW": 0, "SINKS": 0, "PAGE": 0, "DECAY": False, "CHUNK": 128, **changes,
    }  # fmt: skip
    options = {"num_warps": config.warps, "num_stages": config.stages, "maxnreg": decode.REGISTERS}
    return build(decode.split_kernel, pointers, constants, arch, **options)


def build_small(arch: int, dim: int) -> list[Needs]:
    """The plan and the merge kernel."""
    plan = {"WINDOW": 9, "SINKS": 2, "BLOCK": 64, "CHUNK": decode.PLAN_BLOCK}
    merge = {"SIZE": 2, "DIM": dim, "BD": decode.padded(dim), "DIRECTIONS": 4, "SLOTS": decode.MERGE_BLOCK}
    floats = dict.fromkeys(("part", "lse", "directions", "suppress"), "*fp32")
    return [
        build(decode.plan_kernel, {"rows": "*i64", "cum": "*i32"}, plan, arch),
        build(decode.merge_kernel, {"rows": "*i64", "cum": "*i32", "out": "*bf16", **floats}, merge, arch),
    ]


def assert_fits(needs: Needs, arch: int) -> None:
    assert needs.shared <= SHARED_LIMIT[arch] and needs.registers <= 255 and needs.spilled == 0, needs


# Each chip has every configuration; the option sets alternate, and both are covered for each chip.
@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize(("size", "width"), CONFIGS)
def test_the_split_kernel_compiles_without_spills_and_with_room_for_its_programs(
    size: int, width: int, arch: int
) -> None:
    options = EVERYTHING if (arch == 80) != (size == 4) else {}
    needs = build_split(size, width, 4, arch, **options)
    assert_fits(needs, arch)
    assert needs.shared * CONFIGS[size, width].per_sm <= SHARED_LIMIT[arch]


@pytest.mark.parametrize(("dim", "heads", "options"), [(96, 1, {"PAGE": 16}), (128, 64, {}), (80, 3, {"WINDOW": 7})])
def test_odd_head_dims_and_large_groups_compile(dim: int, heads: int, options: dict[str, object]) -> None:
    assert_fits(build_split(2, dim, heads, 90, **options), 90)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_plan_and_merge_compile(arch: int) -> None:
    for needs in build_small(arch, 256):
        assert_fits(needs, arch)
