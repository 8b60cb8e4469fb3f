"""`turnout certify`: the causality certificate of a trained run or of a recipe's model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from turnout.cli.find import find_config, find_run, is_run, trained
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Change later tokens, and compare every earlier output, gate and hidden value bit for bit. Exit 1 if one moved.

    Args:
        what: a finished run, or a recipe (its model with fresh weights; settings may be changed).
        length: tokens of the test sequences.
        positions: places that are changed.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)
    overridable: ClassVar[bool] = True
    what: str
    length: int = 64
    positions: int = 6
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Certify and print the verdict."""
    from turnout.models.causal_lm import CausalLM
    from turnout.probe.causality import certify

    options = call.options
    if is_run(options.what, options.runs):
        from turnout.train.loop import load_model

        call.refuse_overrides("a trained run is certified as it is")
        model, _, _ = load_model(trained(find_run(options.what, options.runs)))
    else:
        config = find_config(options.what, call.overrides, options.runs)
        model = CausalLM(config.model, vocab=config.task.vocab, seed=config.seed)
    found = certify(model, length=options.length, positions=options.positions)
    data = {"what": options.what, "causal": found.causal, "checks": found.checks, "leaks": [*map(asdict, found.leaks)]}
    return Result(data, [f"{options.what}: {found}"], code=0 if found.causal else 1)
