"""The floors are those of the design page: its table comes out of them."""

from __future__ import annotations

import pytest

from turnout.bench.cases import Case
from turnout.bench.floors import Peaks, decode_bytes, floor_ms, least_bytes, useful_flops

H200 = Peaks(flops=805e12, bandwidth=4.27e12, launch=0.0)


@pytest.mark.parametrize(
    ("n", "batch", "p", "ms"),
    [
        (4096, 8, 1 / 4, 0.174), (16384, 2, 1 / 16, 0.174), (16384, 2, 1 / 4, 0.696), (65536, 1, 1 / 256, 0.125),
        (65536, 1, 1 / 64, 0.348), (65536, 1, 1 / 4, 5.57),
    ],
)  # fmt: skip
def test_the_published_floors_of_routed_forward(n: int, batch: int, p: float, ms: float) -> None:
    case = Case(n=n, p=p, batch=batch)
    # The table has three digits and leaves the bytes of q and o out.
    assert floor_ms(useful_flops(case), least_bytes(case, 0.0), H200) == pytest.approx(ms, rel=0.02)


def test_a_backward_pass_adds_five_products_to_two_and_every_gradient() -> None:
    forward, both = Case(n=100, p=0.5), Case(n=100, p=0.5, step="forward+backward")
    assert useful_flops(both) == 3.5 * useful_flops(forward)
    assert least_bytes(both) == 3 * least_bytes(forward)
    assert useful_flops(forward) == pytest.approx(0.5 * useful_flops(forward, 1.0))


def test_grouped_heads_share_bytes_but_no_operations() -> None:
    whole, grouped = Case(n=64, p=0.5, heads=8, kv_heads=8), Case(n=64, p=0.5, heads=8, kv_heads=2)
    assert useful_flops(whole) == useful_flops(grouped)
    assert least_bytes(grouped, 0.0) == least_bytes(whole, 0.0) / 4
    assert decode_bytes(Case(n=10, p=0.1, batch=8, heads=4, kv_heads=2, dim=16)) == pytest.approx(
        2 * 0.8 * 10 * 2 * 16 * 2
    )
