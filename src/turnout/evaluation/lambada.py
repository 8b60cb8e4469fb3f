"""LAMBADA (Paperno et al. 2016) from a local file: is the last word of a passage the most probable one?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.errors import DataError
from turnout.evaluation.scoring import Scorer
from turnout.stats import wilson

if TYPE_CHECKING:
    from turnout.tasks.tokenizer import Tokenizer


def read_passages(path: str | Path) -> list[tuple[str, str]]:
    """(passage without its last word, space and last word) of a .jsonl with "text", or of a text file by lines.

    Raises:
        DataError: missing, empty, or a line that is no passage.
    """
    path = Path(path)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; expected LAMBADA as .jsonl or plain text") from error
    passages = []
    for number, line in enumerate(lines, 1):
        try:
            text = str(json.loads(line)["text"]) if path.suffix == ".jsonl" else line
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}, line {number} is not {{"text": ...}} ({error!r}); restore the file') from error
        context, space, word = text.rstrip().rpartition(" ")
        if not space:
            raise DataError(f"{path}, line {number} is one word ({text[:40]!r}); expected a passage")
        passages.append((context, f" {word}"))
    if not passages:
        raise DataError(f"{path} has no passages; expected one a line")
    return passages


def score_lambada(scorer: Scorer, tokenizer: Tokenizer, path: str | Path, *, most: int | None = None) -> dict[str, Any]:
    """Accuracy (every token of the last word is the most probable) and perplexity of the last word.

    Returns:
        n, accuracy, its 95 % interval (Wilson), perplexity a word, tokens a word.
    """
    passages = read_passages(path)[:most]
    pairs = [(tokenizer.encode(a.encode()).tolist(), tokenizer.encode(b.encode()).tolist()) for a, b in passages]
    scores = scorer.score(pairs)
    n, right = len(scores), sum(score.greedy for score in scores)
    return {
        "n": n,
        "accuracy": right / n,
        "accuracy_95": wilson(right / n, n),
        "perplexity": math.exp(min(700.0, -sum(score.log_prob for score in scores) / n)),
        "tokens_per_word": sum(score.tokens for score in scores) / n,
    }
