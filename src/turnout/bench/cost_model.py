"""A cost model of routed layers: counted work over measured peaks, with a few efficiencies fitted per device.

    t = c_m · matmul/F + c_d · dense attention/F + c_r · routed attention/F + c_b · bytes/W + c_l · kernels · L

F, W and L are the peaks of the device (operations a second, bytes a second, seconds a launch; `turnout bench peaks`);
c ≥ 0 says how many times slower than its peak a kind of work runs. One set of c for each device, dtype and pass.

B batch, N tokens, E width, H query heads, G kv heads, D head dim, p fraction of rows that attend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from turnout.bench.cases import Case
from turnout.bench.floors import BACKWARD, Peaks
from turnout.errors import ConfigError

ARMS = ("dense", "local", "routed")
STEPS = ("forward", "forward+backward", "decode")
# The local track that layer rows are measured with: a convolution of 4 taps, no projections.
TAPS = 4
# Kernels of one mixer, and what a block adds. On a CPU these are calls of torch operators.
LAUNCHES = {"dense": 8, "local": 4, "routed": 40}
BLOCK_LAUNCHES = 10
LONGEST = 2**22


class Work(NamedTuple):
    """Counted work of one call: operations, bytes, kernels."""

    matmul: float = 0.0
    dense: float = 0.0
    routed: float = 0.0
    moved: float = 0.0
    launches: float = 0.0

    def plus(self, other: Work) -> Work:
        """Both works."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Work:
        """The same work so many times."""
        return Work(*(factor * value for value in self))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Peaks and fitted constants of one device, dtype and pass.

    Attributes:
        device, dtype: as in the rows; step: one of STEPS.
        peaks: measured.
        constants: c of each field of Work, ≥ 0.
        error: median absolute percentage error on rows that the fit did not see; None = not fitted.
        n_rows: rows behind the fit; commit: of the newest.
    """

    device: str
    dtype: str
    step: str
    peaks: Peaks
    constants: Work
    error: float | None = None
    n_rows: int = 0
    commit: str = "unknown"

    def seconds(self, work: Work) -> Work:
        """Predicted seconds of each part."""
        return Work(*(c * s for c, s in zip(self.constants, at_peak(work, self.peaks), strict=True)))

    def ms(self, work: Work) -> float:
        """Predicted milliseconds."""
        return 1e3 * sum(self.seconds(work))


def at_peak(work: Work, peaks: Peaks) -> Work:
    """Seconds of each part at the device's peaks: what the constants multiply."""
    return Work(
        matmul=work.matmul / peaks.flops,
        dense=work.dense / peaks.flops,
        routed=work.routed / peaks.flops,
        moved=work.moved / peaks.bandwidth,
        launches=work.launches * peaks.launch,
    )


def layer_work(case: Case, arm: str) -> Work:
    """Work of one mixer or block on whole sequences; `arm` is "dense", "local" or "routed" (at p = case.p).

    Matrix products: keys and values of all tokens 4·N·E·G·D, Wq and Wo of the rows 4·R·E². Attention: 2·R·E·(N + 1).
    Moved: every activation written once and read once. The backward pass is twice the products and bytes of the
    forward, and 2.5 times its attention.
    """
    if arm not in ARMS:
        raise ConfigError(f"arm={arm!r}; expected one of {', '.join(ARMS)}")
    width, kv, tokens = case.width, case.kv_heads * case.dim, case.batch * case.n
    p = {"dense": 1.0, "local": 0.0, "routed": case.rows / case.n}[arm]
    matmul = tokens * (4.0 * width * kv * (arm != "local") + p * 4 * width**2)
    attention = tokens * p * 2.0 * width * (case.n + 1)
    touched = 2.0 * p * (2 * width + width) + (2.0 * 2 * kv if arm != "local" else 0.0)
    if arm != "dense":
        # Convolution, and for a routed layer the router's read and the scatter of the rows.
        touched += (1 + TAPS / 2) * width + (width + 2 * p * width if arm == "routed" else 0.0)
    launches = LAUNCHES[arm]
    if case.part == "block":
        hidden = max(8, round(4 * width * 2 / 3 / 8) * 8)
        matmul += tokens * 6.0 * width * hidden
        touched += 8.0 * width + 6.0 * hidden
        launches += BLOCK_LAUNCHES
    both = case.step != "forward"
    attention *= 1 + BACKWARD if both else 1
    return Work(
        matmul=matmul * (3 if both else 1),
        dense=attention if arm == "dense" else 0.0,
        routed=attention if arm == "routed" else 0.0,
        moved=tokens * touched * case.item_size * (3 if both else 1),
        launches=launches * (3 if both else 1),
    )


def decode_work(case: Case, arm: str, *, weights: bool = True) -> Work:
    """Work of one layer's step of one token a sequence behind N cached tokens: bytes of weights, keys and values.

    Args:
        weights: False counts attention alone, which is what `turnout bench decode` measures.
    """
    width, kv = case.width, case.kv_heads * case.dim
    p = {"dense": 1.0, "local": 0.0, "routed": case.p}[arm]
    moved = 2.0 * case.batch * p * case.n * kv
    launches = 1.0 if arm == "dense" else 4.0
    if weights:
        # Wq and Wo are read whole as soon as one sequence attends; keys and values are made for every token.
        some = 1 - (1 - p) ** case.batch
        moved += (2 * width * kv if arm != "local" else 0) + some * 2 * width**2
        launches += LAUNCHES[arm]
        if case.part == "block":
            moved += 3 * width * max(8, round(4 * width * 2 / 3 / 8) * 8)
            launches += BLOCK_LAUNCHES
    # A dense step is bytes. What picking sequences costs a routed one beyond them goes by its operations.
    operations = 4.0 * case.batch * p * case.n * width
    return Work(
        routed=operations if arm == "routed" else 0.0,
        moved=moved * case.item_size,
        launches=launches,
    )


def head_work(case: Case, vocab: int) -> Work:
    """Embedding lookup and output head of a model."""
    factor = 3 if case.step != "forward" else 1
    tokens = case.batch * case.n
    moved = tokens * (2.0 * case.width + 2 * vocab) * case.item_size
    return Work(matmul=2.0 * tokens * case.width * vocab * factor, moved=moved * factor, launches=3.0 * factor)


def break_even_p(model: CostModel, case: Case) -> float:
    """The largest fraction of rows at which the routed layer is predicted to be no slower than dense; 0 = none."""
    low, high = 0.0, 1.0
    if not _pays(model, case, 1 / case.n):
        return 0.0
    if _pays(model, case, 1.0):
        return 1.0
    # One row is the smallest step.
    while high - low > 0.5 / case.n:
        middle = (low + high) / 2
        low, high = (middle, high) if _pays(model, case, middle) else (low, middle)
    return low


def break_even_n(model: CostModel, case: Case) -> int | None:
    """The smallest N at which the routed layer is predicted to be no slower at p = case.p; None up to 4 M tokens."""

    def pays(n: int) -> bool:
        return _pays(model, replace(case, n=n), case.p)

    n = 1
    while not pays(n):
        n *= 2
        if n > LONGEST:
            return None
    low, high = n // 2, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high


def _pays(model: CostModel, case: Case, p: float) -> bool:
    work = work_of(model.step)
    case = replace(case, p=max(p, 1 / case.n))
    return model.ms(work(case, "routed")) <= model.ms(work(case, "dense"))


def work_of(step: str) -> Callable[[Case, str], Work]:
    """The counting function of a pass."""
    return decode_work if step == "decode" else layer_work
