"""Cases are read as they are written, and nonsense is refused with the field that is wrong."""

from __future__ import annotations

import pytest

from turnout.bench.cases import Case, parse_cases
from turnout.errors import ConfigError

DEFAULT = Case(n=64, p=0.5)


def test_n_and_p_come_first_or_by_name_and_the_rest_by_name() -> None:
    first, second = parse_cases("2048,1/16; n=8192,p=0.125,heads=8,step=forward+backward", DEFAULT)
    assert first == Case(n=2048, p=1 / 16) and first.rows == 128
    assert second == Case(n=8192, p=0.125, heads=8, kv_heads=8, step="forward+backward")
    (grouped,) = parse_cases("64,1,heads=8,kv_heads=2,dim=32,dtype=float32", DEFAULT)
    assert (grouped.kv_heads, grouped.width, grouped.item_size) == (2, 256, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2048,2", "p=2.0; expected a fraction in"),
        ("2048,0", "expected a fraction in"),
        ("2048,1/0", "p='1/0'; expected a fraction such as 1/16"),
        ("0,1/2", "n=0; expected >= 1"),
        ("2k,1/2", "n='2k'; expected a whole number"),
        ("64,1/2,4", "'4' has no name"),
        ("64,1/2,haeds=4", "unknown field 'haeds'; did you mean 'heads'"),
        ("64,1/2,n=3", "n is given twice"),
        ("64,1/2,heads=4,kv_heads=3", "expected kv_heads to divide heads"),
        ("64,1/2,dtype=bf16", "dtype='bf16'"),
        ("64,1/2,step=backward", "did you mean"),
        (" ; ", "names no case"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_cases(text, DEFAULT)


def test_at_least_one_row_attends() -> None:
    assert Case(n=10, p=0.001).rows == 1
