"""The part of `turnout eval` that text models alone have: lengths, LAMBADA, lm-eval, losses by who attended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from turnout.cli.result import Result, Table
from turnout.errors import ConfigError
from turnout.train.live import number, percent

if TYPE_CHECKING:
    from turnout.models.causal_lm import CausalLM
    from turnout.tasks import Task


def by_length(
    model: CausalLM, task: Task, text: str, *, sequences: int, precision: str, seed: int
) -> tuple[Any, Table]:
    """Loss and perplexity at several window lengths, over about the same number of tokens."""
    from turnout.train.evaluate import evaluate

    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--lengths={text!r}; expected whole numbers and commas, such as 256,1024") from error
    tokens, found = sequences * task.length, []
    for length in lengths:
        here = task.config.with_length(length).build(seed)
        count = max(1, tokens // length)
        batch = max(1, min(count, 2**15 // length))
        seen = evaluate(model, here, sequences=count, batch=batch, precision=precision, seed_offset=1)
        found.append({"length": length, "perplexity": math.exp(min(700.0, seen["loss"])), **seen})
    rows = [
        (
            f"{item['length']:,}",
            f"{item['n']:,}",
            number(item["loss"]),
            number(item["perplexity"]),
            percent(item["usage"]),
        )
        for item in found
    ]
    return found, Table(("length", "tokens", "loss", "perplexity", "usage"), rows, "by length of the window")


def by_route(model: CausalLM, task: Task, *, sequences: int) -> tuple[Any, Table]:
    """Token losses grouped by how many layers attended."""
    from turnout.evaluation.losses import losses_by_route

    batch = max(1, min(sequences, 2**15 // task.length))
    found = losses_by_route(model, task, sequences=sequences, batch=batch)
    rows = [
        (str(row["layers"]), f"{row['n']:,}", percent(row["share"]), f"{row['loss']:.4f} ± {1.96 * row['loss_se']:.4f}")
        for row in found
    ]
    return found, Table(("layers attending", "tokens", "share", "loss ± 95 %"), rows, "by who attended")


def text_measures(options: Any) -> Result:
    """LAMBADA and lm-eval, of a run or of an exported folder."""
    from turnout.cli.verbs.generate import load
    from turnout.evaluation.lambada import score_lambada
    from turnout.evaluation.lm_eval import run_lm_eval
    from turnout.evaluation.scoring import Scorer
    from turnout.train.loop import pick_device

    model, tokenizer, length = load(options.run, options.runs)
    longest = options.length or length
    model = model.to(pick_device(options.device))
    data: dict[str, Any] = {"run": options.run, "length": longest}
    tables = []
    if options.lambada is not None:
        scorer = Scorer(model, start=tokenizer.separator, longest=longest)
        found = data["lambada"] = score_lambada(scorer, tokenizer, options.lambada, most=options.sequences)
        low, high = found["accuracy_95"]
        rows = [
            ("accuracy", f"{found['accuracy']:.4f} ({low:.4f} to {high:.4f}) on {found['n']:,} passages"),
            ("perplexity of the last word", number(found["perplexity"])),
            ("tokens a word", number(found["tokens_per_word"], ".2f")),
        ]
        tables.append(Table(("LAMBADA", "value"), rows, f"{options.run}, contexts of up to {longest:,} tokens"))
    if options.lm_eval is not None:
        tasks = [task for task in options.lm_eval.split(",") if task]
        found = data["lm_eval"] = run_lm_eval(model, tokenizer, tasks, longest=longest, limit=options.sequences)
        texts = [
            (str(task), str(metric), number(value, ".4f"))
            for task, metrics in found.items()
            for metric, value in metrics.items()
            if isinstance(value, int | float)
        ]
        tables.append(Table(("task", "metric", "value"), texts, f"{options.run}, lm-eval"))
    return Result(data, tables)
