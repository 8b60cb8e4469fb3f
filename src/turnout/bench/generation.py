"""Rows of whole answers: seconds of `turnout.models.generate`, from token ids to token ids, prompt included.

B sequences, T tokens of a prompt, p fraction of (token, layer) slots that attend.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

from turnout.bench.inference import Bill, build_arm
from turnout.bench.rows import Row, provenance
from turnout.errors import ConfigError
from turnout.models.config import ModelConfig
from turnout.models.generate import Continuation, generate

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One measurement: `batch` prompts of `prompt` random tokens, each continued greedily by `tokens` new ones.

    Args:
        usage: p of the routed arm, drawn for every place before; attention layers of the static hybrid.
        compiled: steps run as compiled blocks (GPU only); what compiling takes is not in `seconds`.
    """

    prompt: int
    tokens: int
    batch: int = 8
    usage: float = 0.1
    compiled: bool = False

    def __post_init__(self) -> None:
        if min(self.prompt, self.tokens, self.batch) < 1 or not 0 < self.usage <= 1:
            raise ConfigError(f"{self}; expected counts >= 1 and 0 < usage <= 1")


def measure_answer(config: ModelConfig, arm: str, case: Answer, *, vocab: int, device: torch.device) -> Row:
    """One row: `seconds` of the call, `tokens_per_s` of its new tokens, `first_s` of a first call that ends after two.

    The arms are those of the inference bill: same weights, same drawn gates, the real router running.
    """
    bill = Bill(context=case.prompt, batch=case.batch, usage=case.usage, steps=case.tokens)
    model = build_arm(config, arm, bill, vocab=vocab, device=device)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocab, (case.batch, case.prompt), generator=generator).tolist()
    compiler = "inductor" if case.compiled else None

    def answer(look: Callable[[list[int], list[int]], None] | None = None) -> list[Continuation]:
        return generate(model, prompts, new_tokens=case.tokens, compiler=compiler, on_tokens=look)

    def begin() -> None:
        # The same call, so that what it compiles is for the same cache; given up at its second token.
        seen: list[int] = []
        with contextlib.suppress(_Enough):
            answer(lambda rows, tokens: _count(seen))

    first, _ = _seconds(begin, device)
    seconds, made = _seconds(answer, device)
    steps = [item.taken[case.prompt :].float().mean().item() for item in made if item.taken.numel()]
    shape = {name: getattr(config, name) for name in ("layers", "width", "heads")} | {"kv_heads": config.n_kv_heads}
    return {
        "kind": "generate", "case": {**shape, "local": config.local, **asdict(case)}, "arm": arm, "status": "ok",
        "seconds": seconds, "first_s": first, "tokens_per_s": case.batch * case.tokens / seconds,
        "usage": sum(steps) / len(steps) if steps else None, "params": sum(p.numel() for p in model.parameters()),
        **provenance(device),
    }  # fmt: skip


class _Enough(Exception):
    """Raised by who looks at tokens, to end a call early."""


def _count(seen: list[int]) -> None:
    seen.append(1)
    if len(seen) == 2:
        raise _Enough


def _seconds(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result
