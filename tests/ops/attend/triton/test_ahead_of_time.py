"""The kernels compile without a device: shared memory within the limit, no register spilled.

Every tile of the tables with every option is a matter of minutes: those tests have a marker, `make test-tiles`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest

from turnout.ops.attend.triton.configs import (
    DKDV_WITH_OPTIONS,
    DKDV_WITH_SUMS,
    DQ_WITH_OPTIONS,
    FULL,
    LEAN,
    LOW,
    ORDINARY,
    ROOMY,
    TABLES,
    WITH_OPTIONS,
    Tile,
)

pytest.importorskip("triton")

CAPABILITY = {"hopper": 90, "ampere": 80}
KERNELS = ("forward", "dq", "dkdv")
OPTIONS = ("decay", "rates", "window, sinks and starts", "blocks", "small blocks", "everything")
Check = Callable[[list[tuple[Any, ...]]], None]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that compile: one kernel at a time in each, and never where the interpreter is on."""
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes,
    ):
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield processes


@pytest.fixture(scope="module")
def check(pool: ProcessPoolExecutor) -> Check:
    from compile_ahead import Order, what_does_not_fit

    def compile_all(orders: list[tuple[Any, ...]]) -> None:
        assert orders
        wrong = list(pool.map(what_does_not_fit, [Order(*order) for order in orders]))
        assert not any(wrong), "\n".join(filter(None, wrong))

    return compile_all


def whole_and_split(orders: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The same with all keys (or rows) in one program, and shared among several; `FULL` is never split."""
    return [*orders, *((kernel, replace(tile, splits=2), *rest) for kernel, tile, *rest in orders if tile != FULL)]


def test_the_tallest_tiles_fit_their_devices(check: Check) -> None:
    # The tile with the most registers of each kernel at the commonest head dim.
    pairs = (("hopper", 128), ("ampere", 128))
    check(
        [
            (kernel, TABLES[name][kernel][2, width][-1], 2, width, "", CAPABILITY[name])
            for name, width in pairs
            for kernel in KERNELS
        ]
    )


def test_the_specialised_kernel_fits_with_splits_grouped_heads_and_directions(check: Check) -> None:
    tall = TABLES["hopper"]["forward"][2, 128][-1]
    tiles = (
        (replace(tall, splits=2), ""),
        (LOW, ""),
        (replace(LOW, splits=2), ""),
        (LOW, "directions"),
        (tall, "directions"),
        (ORDINARY, ""),
    )
    orders = [("forward", tile, 2, 128, option, 90) for tile, option in tiles]
    check([*orders, *(("uncut", LOW, 2, 128, "directions", capability) for capability in (80, 90))])


def test_the_kernel_of_dq_has_room_for_what_directions_need_before_its_loop(check: Check) -> None:
    check([("dq", TABLES["hopper"]["dq"][2, 64][-1], 2, 64, "directions", 90)])


def test_one_decay_a_head_has_room_in_the_specialised_kernel_and_behind_it(check: Check) -> None:
    forward, dkdv = ("forward", WITH_OPTIONS[128]), ("dkdv", DKDV_WITH_OPTIONS[128])
    check([(*one, 2, 128, "rates and starts", 90) for one in (forward, dkdv)])


def test_a_decay_has_room_in_the_tiles_for_options(check: Check) -> None:
    check([(kernel, getattr(LEAN["hopper"][2, 128], kernel), 2, 128, "decay", 90) for kernel in KERNELS])


def test_the_kernels_of_single_keys_fit_wide_heads_and_grouped_ones(pool: ProcessPoolExecutor) -> None:
    from compile_ahead import singles_misfits

    assert pool.submit(singles_misfits, 90).result() == []


def test_a_tile_that_spills_or_needs_too_much_memory_is_found(check: Check) -> None:
    with pytest.raises(AssertionError, match="spills"):
        check([("dq", Tile(16, 32, 1, 1), 4, 128, "", 80)])
    with pytest.raises(AssertionError, match="shared memory"):
        check([("forward", Tile(64, 128, 8, 6), 2, 128, "", 80)])


@pytest.mark.tiles
@pytest.mark.parametrize("width", WITH_OPTIONS)
def test_every_option_has_room_in_the_tiles_for_options(width: int, check: Check) -> None:
    tables = {"forward": WITH_OPTIONS, "dq": DQ_WITH_OPTIONS, "dkdv": DKDV_WITH_OPTIONS}
    options = ("rates and starts", "window", "window, sinks and starts")
    orders = [(kernel, table[width], 2, width, option, 90) for kernel, table in tables.items() for option in options]
    # Sinks are the portable kernel's; short calls without options take the tile too.
    orders = [order for order in orders if order[0] != "forward" or "sinks" not in order[4]]
    orders += [("forward", WITH_OPTIONS[width], 2, width, "", 90)]
    tables["dkdv"] = DKDV_WITH_SUMS
    orders += [(kernel, table[width], 2, width, "decay and starts", 90) for kernel, table in tables.items()]
    # Where rows are split dK/dV takes the tiles of `LEAN`.
    orders += [("dkdv", DKDV_WITH_OPTIONS[width], 2, width, option, 90) for option in ("blocks", "small blocks")]
    check([*(order for order in orders if order[0] == "dkdv"), *whole_and_split([o for o in orders if o[0] != "dkdv"])])


@pytest.mark.tiles
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", TABLES)
def test_every_tile_fits_its_devices(name: str, kernel: str, check: Check) -> None:
    orders = [
        (kernel, tile, itemsize, width, "", CAPABILITY[name])
        for (itemsize, width), tiles in TABLES[name][kernel].items()
        for tile in tiles
    ]
    check(whole_and_split(orders))


@pytest.mark.tiles
@pytest.mark.parametrize("name", TABLES)
def test_directions_have_room_in_every_tile(name: str, check: Check) -> None:
    instead = {TABLES["hopper"]["forward"][2, 128][-1]: LOW, FULL: ROOMY}
    orders = [
        ("forward", instead.get(tile, tile), itemsize, width, "directions", CAPABILITY[name])
        for (itemsize, width), tiles in TABLES[name]["forward"].items()
        for tile in tiles
    ]
    # Heads of 64 restore the gradient beside dQ.
    check([*orders, *(("dq", tile, 2, 64, "directions", CAPABILITY[name]) for tile in TABLES[name]["dq"][2, 64])])


@pytest.mark.tiles
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", LEAN)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_tile_for_options_fits_its_devices(option: str, name: str, kernel: str, check: Check) -> None:
    orders = [
        (kernel, getattr(plan, kernel), itemsize, width, option, CAPABILITY[name])
        for (itemsize, width), plan in LEAN[name].items()
        if option != "everything" or width == 128
    ]
    # What a split adds is the same with every option; sums of a decay hold the most registers.
    check(whole_and_split(orders) if option == "decay" else orders)


@pytest.mark.tiles
@pytest.mark.parametrize("capability", CAPABILITY.values())
def test_what_runs_before_and_after_fits_every_device(capability: int, check: Check) -> None:
    split = Tile(16, 32, 4, 2, splits=2)
    kernels = (("prepare", ""), ("merge", ""), ("merge", "directions"), ("sum", ""), ("uncut", "directions"))
    check(
        [
            (kernel, split, itemsize, width, option, capability)
            for kernel, option in kernels
            for itemsize in (2, 4)
            for width in (64, 128, 256)
        ]
    )


def test_importing_turnout_does_not_import_triton() -> None:
    code = "import sys, torch; before = 'triton' in sys.modules; import turnout, turnout.ops; "
    code += "sys.exit(('triton' in sys.modules) != before)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
