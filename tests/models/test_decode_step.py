"""Steps whose position lives on the device are the whole sequence, decisions included, and hand the state back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from routing_laws import LENGTH, assert_same, awake, sequences, tiny
from turnout.errors import ShapeError, UnsupportedError
from turnout.models import CausalLM, DecodeStep
from turnout.models.config import ModelConfig
from turnout.routers.mode import DENSE, SKIP, RoutingMode


def terms_of(config: ModelConfig) -> int:
    return config.layers * (8 * config.width + 3 * LENGTH)


def started(model: CausalLM, tokens: torch.Tensor, split: int, mode: RoutingMode = SKIP) -> Any:
    state = model.init_state(len(tokens), tokens.shape[1])
    with torch.no_grad():
        if split:
            model(tokens[:, :split], state=state, mode=mode)
    return state


WINDOWS = [("linear", {"layout": layout, "local": "window:size=4"}) for layout in ("RR", "LL")]


@pytest.mark.parametrize("split", [0, 1, 6])
@pytest.mark.parametrize(
    ("router", "changes"),
    [
        *WINDOWS,
        ("linear", {}),
        ("linear", {"granularity": "group", "positions": "rope", "form": "llama"}),
        ("ema", {"positions": "rope"}),
        ("threshold", {"layout": "RA"}),
        ("linear", {"layout": "RL"}),
        ("linear", {"local": "conv:kernel=1"}),
    ],
)
@pytest.mark.parametrize("mode", [SKIP, DENSE], ids=["skip", "dense phase"])
def test_steps_on_the_device_equal_the_whole_sequence(
    router: str, changes: dict[str, Any], split: int, mode: RoutingMode
) -> None:
    model = awake(tiny(router, **changes))
    tokens, _ = sequences()
    with torch.no_grad():
        whole = model(tokens, mode=mode)
    if (router, changes) in WINDOWS:
        # Before its first token a window holds nothing.
        split = max(split, 1)
    step = DecodeStep(model, started(model, tokens, split, mode), mode=mode)
    for t in range(split, LENGTH):
        out = step(tokens[:, t : t + 1])
        assert_same(out.logits[:, 0], whole.logits[:, t], terms=terms_of(model.config))
        for have, want in zip(out.routes, whole.routes, strict=True):
            assert have is want is None or torch.equal(have.taken[:, 0], want.taken[:, t])


def test_after_close_ordinary_calls_continue_where_the_steps_ended() -> None:
    model = awake(tiny("ema"))
    tokens, _ = sequences()
    with torch.no_grad():
        whole = model(tokens).logits
        step = DecodeStep(model, started(model, tokens, 4))
        step(tokens[:, 4:5])
        step(tokens[:, 5:6])
        step.close()
        rest = model(tokens[:, 6:], state=step.state).logits
    assert_same(rest, whole[:, 6:], terms=terms_of(model.config))


@pytest.mark.parametrize(
    ("router", "local", "split", "whose"), [("linear", "window", 0, "local track"), ("random", "conv", 3, "router")]
)
def test_a_memory_that_the_host_counts_is_refused_and_the_state_stays_usable(
    router: str, local: str, split: int, whose: str
) -> None:
    model = awake(tiny(router, local=local))
    tokens, _ = sequences()
    with torch.no_grad():
        whole = model(tokens).logits
    state = started(model, tokens, split)
    with pytest.raises(UnsupportedError, match=f"memory of the {whose} of layer 0 grows or counts on the host"):
        DecodeStep(model, state)
    with torch.no_grad():
        rest = model(tokens[:, split:], state=state).logits
    assert_same(rest, whole[:, split:], terms=terms_of(model.config))


def test_a_full_cache_and_other_tokens_are_refused() -> None:
    model = awake(tiny())
    tokens, _ = sequences()
    step = DecodeStep(model, started(model, tokens, LENGTH - 1))
    with pytest.raises(ShapeError, match="expected one a sequence"):
        step(tokens[:, :2])
    step(tokens[:, -1:])
    with pytest.raises(ShapeError, match="holds 13 tokens, got 14"):
        step(tokens[:, -1:])
    with pytest.raises(ShapeError, match="holds 13 tokens, got 14"):
        DecodeStep(model, started(model, tokens, LENGTH))


def test_a_device_position_takes_one_token_at_a_time() -> None:
    model = awake(tiny())
    tokens, _ = sequences()
    step = DecodeStep(model, started(model, tokens, 2))
    with pytest.raises(ShapeError, match="one at a time"), torch.no_grad():
        model(tokens[:, 2:4], state=step.state)


def test_a_model_of_local_layers_steps_too_and_one_without_memory_is_refused() -> None:
    model = awake(tiny(layout="L"))
    tokens, _ = sequences()
    with torch.no_grad():
        whole = model(tokens).logits
    step = DecodeStep(model, started(model, tokens, 0))
    for t in range(3):
        assert_same(step(tokens[:, t : t + 1]).logits[:, 0], whole[:, t], terms=terms_of(model.config))


def test_compiled_steps_are_the_steps_and_leave_the_model_as_it_was() -> None:
    model = awake(tiny("linear", layers=1, positions="rope"))
    tokens, _ = sequences()
    plain = DecodeStep(model, started(model, tokens, 4))
    compiled = DecodeStep(model, started(model, tokens, 4), compiler="eager")
    for t in range(4, 7):
        have, want = compiled(tokens[:, t : t + 1]), plain(tokens[:, t : t + 1])
        assert torch.equal(have.logits, want.logits)
        assert torch.equal(have.routes[0].taken, want.routes[0].taken)
    assert all(block._compiled_call_impl is None for block in model.blocks)
