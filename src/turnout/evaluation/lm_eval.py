"""Adapter to EleutherAI's lm-eval (extra `eval`): its requests answered by our models, text in and text out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.errors import ConfigError, DataError, UnsupportedError
from turnout.evaluation.scoring import Scorer
from turnout.models.generate import GREEDY, Sampling, generate

if TYPE_CHECKING:
    from turnout.models.causal_lm import CausalLM
    from turnout.tasks.tokenizer import Tokenizer

NEW_TOKENS = 256


class Answers:
    """The three kinds of requests of lm-eval. A request is anything with `args`, as its `Instance`.

    Args:
        model, tokenizer: that belong together.
        longest: tokens that the model was trained on; longer contexts lose their beginning.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, *, longest: int) -> None:
        self.model, self.tokenizer, self.longest = model, tokenizer, longest
        self.scorer = Scorer(model, start=tokenizer.separator, longest=longest)

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(log probability of the continuation, whether greedy choice gives it) for (context, continuation)."""
        scores = self.scorer.score([self._pair(*request.args) for request in requests])
        return [(score.log_prob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Log probability of whole texts."""
        scores = self.scorer.score([((), self._ids(request.args[0])) for request in requests])
        return [score.log_prob for score in scores]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Continuations up to the first of the stop texts."""
        answers = []
        for request in requests:
            context, options = request.args
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else list(stops)
            limit = int(options.get("max_gen_toks", NEW_TOKENS))
            limit = min(limit, self.longest - 1)
            temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
            sampling = Sampling(temperature=temperature) if temperature else GREEDY
            prompt = (self._ids(context) or [self.tokenizer.separator])[-(self.longest - limit) :]
            (made,) = generate(self.model, [prompt], new_tokens=limit, sampling=sampling, stop=self.tokenizer.separator)
            kept = [token for token in made.tokens if token != self.tokenizer.separator]
            text = self.tokenizer.decode(kept).decode("utf-8", "replace")
            answers.append(re.split("|".join(map(re.escape, stops)), text)[0] if stops else text)
        return answers

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the whole text's tokens meet the boundary: a space belongs to what follows it."""
        moved = len(context) - len(context.rstrip())
        if moved:
            context, continuation = context[:-moved], context[-moved:] + continuation
        whole, before = self._ids(context + continuation), self._ids(context)
        same = 0
        while same < min(len(before), len(whole)) and before[same] == whole[same]:
            same += 1
        # A token across the boundary belongs to the continuation.
        return whole[:same], whole[same:]

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text.encode())] if text else []


def task_of(path: Path) -> str:
    """The name that a task's file gives it; lm-eval's own tags in it are not looked at.

    Raises:
        DataError: no such file, or it has no task.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the task {path}: {error}") from error
    found = re.search(r"^task:[ \t]*['\"]?([^\s'\"#]+)", text, re.MULTILINE)
    if found is None:
        raise DataError(f"{path} has no line 'task: NAME'; expected a task of lm-eval")
    return found[1]


def run_lm_eval(
    model: CausalLM, tokenizer: Tokenizer, tasks: Sequence[str], *, longest: int, limit: int | None = None
) -> dict[str, Any]:
    """Results of lm-eval's tasks: {task: {metric: value}}.

    Args:
        tasks: names, or paths of the YAML files of one's own.
    Raises:
        UnsupportedError: lm-eval is not installed.
        ConfigError: it does not know a task.
        DataError: a file that cannot be read or is no task.
    """
    files = {task: Path(task) for task in tasks if Path(task).suffix in (".yaml", ".yml")}
    names = [task_of(files[task]) if task in files else task for task in tasks]
    try:
        from lm_eval import simple_evaluate
        from lm_eval.api.model import LM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UnsupportedError(
            f"--lm-eval needs the package lm_eval, which cannot be imported ({error}); pip install 'turnout[eval]'"
        ) from error
    manager = TaskManager(include_path=[str(path.resolve().parent) for path in files.values()] or None)
    unknown = [task for task in names if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"lm-eval has no task {unknown[0]!r}; lm-eval ls tasks names them")

    class Adapter(Answers, LM):
        def __init__(self) -> None:
            LM.__init__(self)
            Answers.__init__(self, model, tokenizer, longest=longest)

    found = simple_evaluate(model=Adapter(), tasks=names, limit=limit, task_manager=manager, log_samples=False)
    return {} if found is None else dict(found["results"])
