"""What is measured: a size, a fraction of rows and a pass, as one line of text and back.

N tokens, H query heads, G kv heads, D head dim, E width, p fraction of rows that attend.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from turnout.errors import ConfigError, nearest

PASSES = ("forward", "forward+backward")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measurement.

    Args:
        n: tokens N of a sequence; p: fraction of them that attend, in (0, 1].
        batch: sequences; heads: query heads H; kv_heads: H % G == 0; dim: head dim D.
        dtype: float32, bfloat16 or float16.
        step: "forward" or "forward+backward".
        part: of a layer row, "mixer" or "block".
    """

    n: int
    p: float
    batch: int = 1
    heads: int = 16
    kv_heads: int = 16
    dim: int = 128
    dtype: str = "bfloat16"
    step: str = "forward"
    part: str = "mixer"

    def __post_init__(self) -> None:
        for name in ("n", "batch", "heads", "kv_heads", "dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"case {name}={getattr(self, name)}; expected >= 1")
        if not 0 < self.p <= 1:
            raise ConfigError(f"case p={self.p}; expected a fraction in (0, 1], such as 1/16")
        if self.heads % self.kv_heads:
            raise ConfigError(f"case heads={self.heads}, kv_heads={self.kv_heads}; expected kv_heads to divide heads")
        for name, options in (("dtype", DTYPES), ("step", PASSES), ("part", ("mixer", "block"))):
            if getattr(self, name) not in options:
                raise ConfigError(f"case {name}={getattr(self, name)!r}{nearest(getattr(self, name), options)}")

    @property
    def rows(self) -> int:
        """Rows that attend in one sequence, at least 1."""
        return max(1, round(self.p * self.n))

    @property
    def width(self) -> int:
        """Model dimension E = H · D."""
        return self.heads * self.dim

    @property
    def item_size(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 2

    def to_dict(self) -> dict[str, Any]:
        """Plain fields for a row."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"N={self.n} p={Fraction(self.p).limit_denominator(4096)} B={self.batch} H={self.heads}/{self.kv_heads} "
            f"D={self.dim} {self.dtype} {self.step}"
        )


def parse_cases(text: str, defaults: Case) -> list[Case]:
    """`"2048,1/16; n=8192,p=1/8,step=forward+backward"`: N and p first or by name, then any other field by name.

    Raises:
        ConfigError: an unknown field (names the nearest), a value of the wrong type, or no case at all.
    """
    cases = [_parse_case(part.strip(), defaults) for part in text.split(";") if part.strip()]
    if not cases:
        raise ConfigError(f"--cases={text!r} names no case; write N,p such as 2048,1/16")
    return cases


def _parse_case(text: str, defaults: Case) -> Case:
    kinds = {field.name: type(getattr(defaults, field.name)) for field in fields(Case)}
    given: dict[str, Any] = {}
    for place, word in enumerate(text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            if place > 1:
                raise ConfigError(f"case {text!r}: {word.strip()!r} has no name; only N and p may go without")
            name, value = ("n", "p")[place], name
        name = name.lower()
        if name not in kinds:
            raise ConfigError(f"case {text!r}: unknown field {name!r}{nearest(name, kinds)}")
        if name in given:
            raise ConfigError(f"case {text!r}: {name} is given twice; keep one")
        try:
            given[name] = float(Fraction(value)) if kinds[name] is float else kinds[name](value)
        except (ValueError, ZeroDivisionError) as error:
            kind = "a whole number" if kinds[name] is int else "a fraction such as 1/16"
            raise ConfigError(f"case {text!r}: {name}={value!r}; expected {kind}") from error
    # Fewer kv heads than query heads must be asked for.
    if "heads" in given and "kv_heads" not in given:
        given["kv_heads"] = given["heads"]
    return Case(**{**asdict(defaults), **given})
