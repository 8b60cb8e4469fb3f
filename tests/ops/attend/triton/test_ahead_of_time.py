"""Every tile of the tables compiles without a device: shared memory within the limit, no register spilled."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter is on: nothing compiles", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from turnout.ops.attend.triton import backward, forward  # noqa: E402
from turnout.ops.attend.triton.configs import LEAN, TABLES, Plan, Tile  # noqa: E402
from turnout.ops.attend.triton.job import Job  # noqa: E402

# Bytes of shared memory that one program may use; the tables for "ampere" keep to what its smallest part has.
LIMITS = {90: 227 * 1024, 80: 99 * 1024}
TARGETS = {"hopper": 90, "ampere": 80}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.float64: "*fp64",
}
KERNELS = ("forward_kernel", "dq_kernel", "dkdv_kernel")
B, R, S, H, G = 1, 64, 256, 4, 2

Launch = tuple[Any, dict[str, Any], int, int]


def launches(plan: Plan, itemsize: int, width: int, **options: Any) -> list[Launch]:
    """What the operator would launch, forward and backward, for these tiles: kernel, arguments, warps, stages."""
    recorded: list[Launch] = []

    def record(kernel: Any, n_programs: int, arguments: dict[str, Any], *, warps: int, stages: int = 1) -> None:
        recorded.append((kernel, arguments, warps, stages))

    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    q, k = torch.zeros(B, R, H, width, dtype=dtype), torch.zeros(B, S, G, width, dtype=dtype)
    absent = dict.fromkeys(("starts", "total", "blocks", "n_blocks", "directions", "suppress"))
    numbers = {"window": 0, "sinks": 0, "scale": 0.1, "key_block": 1, "row_block": 1}
    tiles = [n for t in (plan.forward, plan.dq, plan.dkdv) for n in (t.rows, t.keys, t.warps, t.stages, t.splits)]
    rows = torch.zeros(B, 1, R, dtype=torch.int64)
    job = Job(q=q, k=k, v=k, rows=rows, **{**absent, **numbers, **options}, tiles=tiles)
    with pytest.MonkeyPatch.context() as patch:
        for module in (forward, backward):
            patch.setattr(module, "run", record)
        _, _, lse = forward.forward(job)
        backward.backward(job, q, q, lse, need_q=True, need_kv=True)
    return recorded


def source_of(kernel: Any, arguments: dict[str, Any]) -> Any:
    """The kernel with its arguments' types and the divisibility by 16 that a launch would find."""
    signature, constants, divisible = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or not (
            parameter.do_not_specialize or isinstance(value, float) or value % 16
        ):
            divisible[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, divisible)


def what_is_wrong(launch: Launch, capability: int, tmp_path: Path) -> str:
    """Compile one launch: "" if it fits the device."""
    kernel, arguments, warps, stages = launch
    name = f"{kernel.__name__} BM={arguments['BM']} BN={arguments['BN']} warps={warps} stages={stages} sm_{capability}"
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source_of(kernel, arguments), target=GPUTarget("cuda", capability, 32), options=options)
    binary = tmp_path / f"{abs(hash((name, arguments['D'], arguments['DECAY'])))}.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    report = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+).*LOCAL:(\d+)", report)
    assert found, report
    wrong = "" if found.groups() == ("0", "0") else f"spills {found.group(1)} bytes a thread"
    if compiled.metadata.shared > LIMITS[capability]:
        wrong += f"{compiled.metadata.shared} bytes of shared memory, above {LIMITS[capability]}"
    return wrong and f"{name}: {wrong}"


def check(jobs: list[tuple[Launch, int]], tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        wrong = list(pool.map(lambda job: what_is_wrong(*job, tmp_path), jobs))
    assert not any(wrong), "\n".join(filter(None, wrong))


def tall(tile: Tile) -> bool:
    """Tiles for few rows differ from the tall ones by their height alone: one head dim stands for them."""
    return tile.rows > 16


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("name", TABLES)
def test_every_half_precision_tile_fits_its_devices(name: str, width: int, tmp_path: Path) -> None:
    jobs = []
    for place, kernel in enumerate(("forward", "dq", "dkdv")):
        for tile in TABLES[name][kernel][2, width]:
            plan = Plan(*[replace(tile, splits=1)] * 3)
            jobs += [(one, TARGETS[name]) for one in launches(plan, 2, width) if one[0].__name__ == KERNELS[place]]
    check(jobs, tmp_path)


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("capability", LIMITS)
def test_every_single_precision_tile_fits_every_device(capability: int, width: int, tmp_path: Path) -> None:
    tables = TABLES["hopper"]
    plan = Plan(*(tables[kernel][4, width][0] for kernel in ("forward", "dq", "dkdv")))
    check([(one, capability) for one in launches(plan, 4, width) if one[0].__name__ in KERNELS], tmp_path)


OPTIONS: dict[str, dict[str, Any]] = {
    "decay": {"total": torch.zeros(B, S, H, dtype=torch.float64)},
    "window, sinks and starts": {"window": 100, "sinks": 4, "starts": torch.zeros(B, 1, R, dtype=torch.int64)},
    "blocks": {
        "blocks": torch.zeros(B, 2, G, 4, dtype=torch.int32),
        "n_blocks": torch.zeros(B, 2, G, dtype=torch.int32),
        "key_block": 64,
        "row_block": 32,
    },
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("capability", LIMITS)
def test_the_tiles_for_options_have_room_for_them(capability: int, option: str, tmp_path: Path) -> None:
    jobs = [one for one in launches(LEAN[2, 128], 2, 128, **OPTIONS[option]) if one[0].__name__ in KERNELS]
    check([(one, capability) for one in jobs], tmp_path)


def test_importing_turnout_does_not_import_triton() -> None:
    code = "import sys, turnout, turnout.ops; sys.exit('triton' in sys.modules and 'torch' in sys.modules)"
    baseline = "import sys, torch; sys.exit('triton' in sys.modules)"
    already, ours = (subprocess.run([sys.executable, "-c", text]).returncode for text in (baseline, code))
    assert ours == already
