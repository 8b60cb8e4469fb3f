"""The search: scores that are what a model computes, optimisers that find what is there, kills that lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from routing_laws import assert_same
from turnout.errors import ConfigError, DataError
from turnout.models import CausalLM, ModelConfig
from turnout.routers.mode import SKIP
from turnout.search.costs import measure_costs
from turnout.search.heads import order_model
from turnout.search.optimisers import METHODS
from turnout.search.run import search
from turnout.search.scorer import Score, Scorer
from turnout.search.space import Space, default_actions, space_of
from turnout.tasks import MQARConfig, Task

ACTIONS = ("full", "sinks:size=4,sinks=1", "dilated:branches=(4/1+8/2)", "forget:gate=fixed,shortest=2,longest=2")


# Two kv heads at the price of one and a half.
COSTS = [[0.75 * ms, ms] for ms in (4.0, 1.0, 2.0, 3.0)]


def config(**changes: object) -> ModelConfig:
    return ModelConfig(**{"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "layout": "A", **changes})  # type: ignore[arg-type]


def task() -> Task:
    return MQARConfig(length=32, pairs=2, vocab=64).build(0)


def scorer(price: float = 0.1) -> Scorer:
    model = CausalLM(config(), vocab=64, seed=0)
    for p in model.parameters():
        p.data *= 2
    return Scorer(model, task(), space_of(config(), ACTIONS), price=price, costs=COSTS, batch=4)


@pytest.mark.parametrize("choice", [(0, 1, 2, 3), (1, 0, 3, 2)])
def test_a_score_is_the_loss_of_the_model_that_serves_the_choice(choice: tuple[int, ...]) -> None:
    made = scorer()
    score = made(choice)
    pattern = made.space.pattern(choice)
    assert pattern.startswith("head_mixture:parts=(2 full;2 sinks:size=4,sinks=1) / head_mixture:parts=(2 dilated")
    twin = CausalLM(config(pattern=pattern), vocab=64, seed=0)
    for p in twin.parameters():
        p.data *= 2
    order_model(twin, made.space.orders(choice))
    batch = next(iter(task().eval_batches(1, 4)))
    logits = twin.eval()(batch.tokens, mode=SKIP, at=batch.at).logits
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert_same(torch.tensor(score.loss), want, terms=1000)
    assert score.cost == pytest.approx(0.75 * (4 + 1 + 2 + 3) / 8)
    assert score.reward == pytest.approx(made.base - score.loss - 0.1 * score.cost)


def test_heads_in_another_order_are_the_same_model() -> None:
    made = scorer()
    model, tokens = made.restore(), torch.arange(24).view(2, 12)
    before = model(tokens, mode=SKIP).logits
    order_model(model, [[1, 0], [1, 0]])
    assert not torch.equal(model.blocks[0].mixer.attention.q.weight, made.weights[0]["q.weight"])  # type: ignore[union-attr]
    assert_same(model(tokens, mode=SKIP).logits, before, terms=1000)


def test_measured_costs_have_every_number_of_heads() -> None:
    costs = measure_costs(config(), ACTIONS, torch.zeros(1, 32, dtype=torch.int64), seconds=0.0)
    assert [len(times) for times in costs] == [2] * len(ACTIONS) and min(map(min, costs)) > 0


def test_the_relaxation_of_a_certain_choice_is_that_choice() -> None:
    made = scorer()
    share = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 3]]), 4).float()
    assert float(made.soft_loss((share - 1) * 3e4)) == pytest.approx(made((0, 1, 2, 3)).loss, abs=1e-4)
    # A whole layer's time, shared out: what two heads of one action cost together.
    assert float(made.soft_cost(share)) == pytest.approx((4 + 1 + 2 + 3) / 16)


class Known(Scorer):
    """A reward with one best choice: each slot has its own action."""

    def __init__(self) -> None:
        self.space = Space(actions=("a", "b", "c"), layers=3, heads=4)
        self.price, self.base = 0.3, 1.0
        self.costs = [[ms * n / 4 for n in range(1, 5)] for ms in (3.0, 1.0, 2.0)]
        self.wanted = tuple(i % 3 for i in range(12))
        self.calls = 0

    def __call__(self, choice: tuple[int, ...]) -> Score:
        self.calls += 1
        loss = 1 + sum(a != b for a, b in zip(choice, self.wanted, strict=True)) / 12
        return Score(loss=loss, cost=self.cost(choice), reward=self.reward(loss, self.cost(choice)))


@pytest.mark.parametrize("method", ["grpo", "reinforce", "evolution"])
def test_a_search_that_learns_beats_chance_at_equal_evaluations(method: str) -> None:
    rewards = [
        [search(Known(), method=m, evaluations=640, seed=s).score.reward for s in range(3)] for m in (method, "random")
    ]
    assert min(rewards[0]) > max(rewards[1]) + 0.05, rewards


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_search_goes_on_to_the_same_end(method: str, tmp_path: Path) -> None:
    made = Known() if method != "relaxed" else scorer()
    whole = search(made, method=method, evaluations=60, seed=1, path=tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:5]) + lines[5][:7] if len(lines) > 5 else "".join(lines[:-1]))
    if isinstance(made, Known):
        made.calls = 0
    again = search(made, method=method, evaluations=60, seed=1, path=cut)
    assert again == whole
    assert whole.curve == sorted(whole.curve)
    assert cut.read_text() == (tmp_path / "whole.jsonl").read_text()
    if isinstance(made, Known):
        assert made.calls == len(lines) - 5


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    search(Known(), method="random", evaluations=16, path=tmp_path / "e.jsonl")
    with pytest.raises(DataError, match="holds a search with other settings"):
        search(Known(), method="evolution", evaluations=16, path=tmp_path / "e.jsonl")


def test_what_cannot_be_searched_is_said() -> None:
    with pytest.raises(ConfigError, match=r"budget=0.1: even the cheapest action everywhere takes 0.333"):
        search(Known(), method="random", evaluations=16, budget=0.1)
    with pytest.raises(ConfigError, match="none of 16 choices was cheap enough"):
        search(Known(), method="random", evaluations=16, budget=0.34)
    with pytest.raises(ConfigError, match="method='gpro'; did you mean 'grpo'"):
        search(Known(), method="gpro", evaluations=16)
    with pytest.raises(ConfigError, match="evaluations=0"):
        search(Known(), method="grpo", evaluations=0)
    with pytest.raises(ConfigError, match="at least two different patterns"):
        Space(actions=("full", "full"), layers=1, heads=1)
    with pytest.raises(ConfigError, match="search starts from a model with layout A"):
        space_of(config(layout="R"), ACTIONS)
    with pytest.raises(ConfigError, match="has weights that this model never trained"):
        Scorer(
            CausalLM(config(), vocab=64),
            task(),
            space_of(config(), ("full", "kerple")),
            price=0.1,
            costs=COSTS,
            batch=2,
        )
    with pytest.raises(ConfigError, match="directions='static:k=2', output_gate='none'; search a model without them"):
        space_of(config(directions="static:k=2"), ACTIONS)


def test_the_price_waits_for_quality() -> None:
    from turnout.search.optimisers import PolicyGradient

    space = Space(actions=("a", "b"), layers=1, heads=2)
    moved = []
    for loss in (1.0, 9.0):
        policy = PolicyGradient(space, 0, price=1.0, normalise=False)
        choices = policy.propose()
        # All choices lose the same, so that nothing but the price can move the policy.
        policy.tell(choices, [Score(loss=loss, cost=1.0 - sum(c) / 2, reward=0.0) for c in choices], base=1.0)
        moved.append(float((policy.logits.detach() - torch.tensor([1.5, 0.0])).abs().max()))
    assert moved[0] > 0.1 and moved[1] == 0


def test_the_default_actions_are_patterns_of_a_model() -> None:
    for action in default_actions(512):
        CausalLM(config(pattern=action), vocab=8).check_length(512)
