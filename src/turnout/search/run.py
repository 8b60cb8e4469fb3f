"""One search from start to end: proposals, scores, the log, and the best choice that the budget allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnout.errors import ConfigError
from turnout.search.log import EvaluationLog
from turnout.search.optimisers import METHODS, build_optimiser
from turnout.search.relaxed import PASSES, Relaxed
from turnout.search.scorer import Score, Scorer
from turnout.search.space import Choice

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The best feasible choice and how the search came to it.

    Attributes:
        choice, score, pattern: the winner; pattern is what a config takes.
        curve: best reward before the first and after each evaluation; -inf while nothing is feasible.
        evaluations: forward passes spent (a gradient step counts as three).
        base: loss of the first action everywhere.
    """

    choice: Choice
    score: Score
    pattern: str
    curve: list[float]
    evaluations: int
    base: float


def search(
    scorer: Scorer, *, method: str, evaluations: int, seed: int = 0, budget: float = 1.0, path: Path | None = None,
    report: Report = lambda line: None,
) -> Found:  # fmt: skip
    """Spend `evaluations` on one method.

    Args:
        budget: largest cost of the winner, as a share of the first action everywhere.
        path: file of evaluations; a search that was killed goes on from it.
    Raises:
        ConfigError: unknown method, no evaluation, or no choice that the budget allows.
        DataError: the file belongs to another search.
    """
    if method not in METHODS:
        build_optimiser(method, scorer.space, seed=seed, price=scorer.price)
    if evaluations < 1:
        raise ConfigError(f"search evaluations={evaluations}; expected >= 1")
    cheapest = min(scorer.cost(scorer.space.uniform(a)) for a in range(len(scorer.space.actions)))
    if cheapest > budget:
        raise ConfigError(
            f"search budget={budget}: even the cheapest action everywhere takes {cheapest:.3f} of the time of "
            f"{scorer.space.actions[0]!r}, so nothing is feasible; raise the budget or add a cheaper action"
        )
    settings = {
        "method": method, "seed": seed, "actions": list(scorer.space.actions), "layers": scorer.space.layers,
        "heads": scorer.space.heads, "price": scorer.price, "base": round(scorer.base, 4),
    }  # fmt: skip
    log = EvaluationLog(path, settings)
    # Times are measured once: a search that goes on keeps those that its first scores were made with.
    if log.lines and "ms" in log.lines[0]:
        scorer.costs = [list(times) for times in log.lines[0]["ms"]]
    elif not log.lines:
        log.append({"ms": scorer.costs})
    runner = _relaxed if method == "relaxed" else _proposals
    # What the model was trained with is known before the first proposal.
    first = scorer.space.uniform(0)
    start = Score(loss=scorer.base, cost=scorer.cost(first), reward=scorer.reward(scorer.base, scorer.cost(first)))
    seen = [(first, start), *runner(scorer, log, method, evaluations, seed, report)]
    feasible = [(score, choice) for choice, score in seen if score.cost <= budget]
    if not feasible:
        raise ConfigError(
            f"search budget={budget}: none of {len(seen) - 1} choices was cheap enough; spend more evaluations, "
            f"raise the price (now {scorer.price}) or the budget"
        )
    score, choice = max(feasible, key=lambda pair: pair[0].reward)
    curve, best = [], -float("inf")
    for _, one in seen:
        best = max(best, one.reward) if one.cost <= budget else best
        curve.append(best)
    pattern = scorer.space.pattern(choice)
    return Found(choice=choice, score=score, pattern=pattern, curve=curve, evaluations=evaluations, base=scorer.base)


def _proposals(
    scorer: Scorer, log: EvaluationLog, method: str, evaluations: int, seed: int, report: Report
) -> list[tuple[Choice, Score]]:
    optimiser = build_optimiser(method, scorer.space, seed=seed, price=scorer.price)
    known = {tuple(line["choice"]): _score(line) for line in log.lines if "choice" in line}
    seen: list[tuple[Choice, Score]] = []
    while len(seen) < evaluations:
        choices = optimiser.propose()[: evaluations - len(seen)]
        scores = []
        for choice in choices:
            if choice not in known:
                known[choice] = scorer(choice)
                log.append(_line(choice, known[choice]))
            scores.append(known[choice])
        optimiser.tell(choices, scores, scorer.base)
        seen += zip(choices, scores, strict=True)
        best = max(score.reward for _, score in seen)
        report(f"{len(seen)}/{evaluations} evaluations, best reward {best:.4f}, this group's mean loss "
               f"{sum(s.loss for s in scores) / len(scores):.4f}")  # fmt: skip
    return seen


def _relaxed(
    scorer: Scorer, log: EvaluationLog, method: str, evaluations: int, seed: int, report: Report
) -> list[tuple[Choice, Score]]:
    """Gradient steps, and every fourth an evaluation of the choice that they stand for. Nothing is drawn."""
    relaxed = Relaxed(scorer)
    known = {tuple(line["choice"]): _score(line) for line in log.lines if "choice" in line}
    seen: list[tuple[Choice, Score]] = []
    spent = 0
    while spent < evaluations:
        if relaxed.steps % 4 == 0 or spent + PASSES >= evaluations:
            choice = relaxed.choice()
            if choice not in known:
                known[choice] = scorer(choice)
                log.append(_line(choice, known[choice]))
            seen.append((choice, known[choice]))
            spent += 1
            report(f"{spent}/{evaluations} passes, loss {known[choice].loss:.4f}, cost {known[choice].cost:.3f}")
        relaxed.step()
        spent += PASSES
    return seen


def _line(choice: Choice, score: Score) -> dict[str, Any]:
    return {"choice": list(choice), "loss": score.loss, "cost": score.cost, "reward": score.reward}


def _score(line: dict[str, Any]) -> Score:
    return Score(loss=line["loss"], cost=line["cost"], reward=line["reward"])
