"""Configs: dictionary and overrides are faithful, and whatever does not fit is refused by its dotted name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.config import apply_overrides, flatten, from_dict, to_dict
from turnout.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    layers: int = 2
    rate: float = 0.1
    tied: bool = False
    norm: Literal["rms", "layer"] = "rms"
    window: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.99)
    low: int = 1
    high: int = 4

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(f"layers={self.layers}; use layers >= 1")
        if self.low > self.high:
            raise ConfigError(f"low={self.low} exceeds high={self.high}; use low <= high")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    kind: ClassVar[str] = "recall"
    length: int = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    kind: ClassVar[str] = "text"
    path: str
    limits: Model = field(default_factory=Model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    model: Model = field(default_factory=Model)
    task: Recall | Text = field(default_factory=Recall)
    budget: Model | None = None
    stages: tuple[Recall, ...] = ()
    name: str = "run"
    capacity: int | Literal["auto"] = "auto"


NUMBERS = st.floats(allow_nan=False)
MODELS = st.builds(
    Model,
    layers=st.integers(1, 99),
    rate=NUMBERS,
    tied=st.booleans(),
    norm=st.sampled_from(["rms", "layer"]),
    window=st.none() | st.integers(),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    betas=st.tuples(NUMBERS, NUMBERS),
)
RECALLS = st.builds(Recall, length=st.integers())
RUNS = st.builds(
    Run,
    model=MODELS,
    task=RECALLS | st.builds(Text, path=st.text(), limits=MODELS),
    budget=st.none() | MODELS,
    stages=st.lists(RECALLS, max_size=2).map(tuple),
    name=st.text(),
    capacity=st.integers() | st.just("auto"),
)


@given(RUNS)
def test_a_config_survives_json_exactly(run: Run) -> None:
    assert from_dict(Run, json.loads(json.dumps(to_dict(run)))) == run


@given(RUNS, RUNS)
def test_overriding_every_leaf_turns_any_config_into_any_other(start: Run, goal: Run) -> None:
    assert apply_overrides(start, flatten(goal)) == goal


@given(MODELS)
def test_overrides_read_the_text_of_every_leaf(model: Model) -> None:
    assert apply_overrides(Model(), {key: str(value) for key, value in flatten(model).items()}) == model


def test_a_dictionary_is_plain_and_holds_nothing_but_fields_and_kind() -> None:
    plain = to_dict(Run(stages=(Recall(length=5),)))
    assert list(plain) == ["model", "task", "budget", "stages", "name", "capacity"]
    assert plain["task"] == {"kind": "recall", "length": 128}
    assert plain["stages"] == [{"kind": "recall", "length": 5}]
    assert plain["model"]["sizes"] == [1, 2]
    assert "kind" not in plain["model"]


def test_missing_keys_take_their_defaults() -> None:
    assert from_dict(Run, {}) == Run()
    assert from_dict(Run, {"model": {"layers": 3}}) == Run(model=Model(layers=3))


def test_integers_become_floats_and_nothing_else_is_converted() -> None:
    assert type(from_dict(Model, {"rate": 1}).rate) is float
    assert from_dict(Model, {"betas": [0, 1]}).betas == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown setting modle; did you mean 'model'?"),
        ({"model": {"layer": 1}}, "unknown setting model.layer; did you mean 'layers'?"),
        ({"model": {"layers": 2.0}}, "model.layers=2.0 (float); expected an integer"),
        ({"model": {"layers": True}}, "model.layers=True (bool); expected an integer"),
        ({"model": {"layers": "2"}}, "model.layers='2' (str); expected an integer"),
        ({"model": {"layers": None}}, "model.layers=None"),
        ({"model": {"rate": float("nan")}}, "model.rate=nan"),
        ({"model": {"tied": 1}}, "expected true or false"),
        ({"model": {"norm": "rsm"}}, "model.norm='rsm' is not a choice; did you mean 'rms'?"),
        ({"model": {"window": "3"}}, "expected an integer or none"),
        ({"model": {"sizes": 3}}, "expected a list, each an integer"),
        ({"model": {"sizes": [1, "b"]}}, "model.sizes[1]='b'"),
        ({"model": {"betas": [0.1]}}, "expected a list of 2"),
        ({"model": {"layers": 0}}, "model: layers=0; use layers >= 1"),
        ({"model": 3}, "model must be a table of settings (Model), got 3"),
        ({"task": {"length": 3}}, "task needs task.kind, one of: recall, text"),
        ({"task": {"kind": "recal"}}, "unknown task.kind 'recal'; did you mean 'recall'?"),
        ({"task": {"kind": "text"}}, "task needs path; set task.path"),
        ({"task": {"kind": "recall", "path": "x"}}, "unknown setting task.path"),
        ({"stages": [{"kind": "text"}]}, "stages[0].kind='text', but Recall is of kind 'recall'"),
        ({"capacity": "all"}, "capacity='all'"),
        ({"name": 3}, "name=3 (int); expected a string"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_was_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Run, values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ({"model.layers": "4"}, Run(model=Model(layers=4))),
        ({"model.rate": "1e-3"}, Run(model=Model(rate=1e-3))),
        ({"model.tied": "yes"}, Run(model=Model(tied=True))),
        ({"model.window": "64"}, Run(model=Model(window=64))),
        ({"model.sizes": "[3, 4]"}, Run(model=Model(sizes=(3, 4)))),
        ({"model.sizes": ""}, Run(model=Model(sizes=()))),
        ({"model.betas": "0.5,0.6"}, Run(model=Model(betas=(0.5, 0.6)))),
        ({"model": '{"layers": 7}'}, Run(model=Model(layers=7))),
        ({"task.length": "9"}, Run(task=Recall(length=9))),
        ({"task.kind": "text", "task.path": "12"}, Run(task=Text(path="12"))),
        (
            {"task.kind": "text", "task.path": "a", "task.limits.layers": "3"},
            Run(task=Text(path="a", limits=Model(layers=3))),
        ),
        ({"budget.layers": "3"}, Run(budget=Model(layers=3))),
        ({"budget": "none"}, Run()),
        ({"stages": '[{"kind": "recall", "length": 3}]'}, Run(stages=(Recall(length=3),))),
        ({"capacity": "64"}, Run(capacity=64)),
        ({"name": "none"}, Run(name="none")),
    ],
)
def test_override_text_is_read_by_the_annotation(text: dict[str, str], run: Run) -> None:
    assert apply_overrides(Run(), text) == run


def test_values_that_are_only_valid_together_can_be_overridden_together() -> None:
    changed = apply_overrides(Run(), {"model.low": "8", "model.high": "9"})
    assert (changed.model.low, changed.model.high) == (8, 9)
    with pytest.raises(ConfigError, match="model: low=8 exceeds high=4"):
        apply_overrides(Run(), {"model.low": "8"})


def test_overrides_leave_the_original_untouched() -> None:
    run = Run()
    apply_overrides(run, {"model.layers": "4"})
    assert run == Run() and replace(run) == run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layers": "4"}, "unknown setting layers; did you mean 'model.layers'?"),
        ({"model.layer": "4"}, "unknown setting model.layer; did you mean 'model.layers'?"),
        ({"model.layers.x": "4"}, "unknown setting model.layers.x; did you mean 'model.layers'?"),
        ({"model.layers": "four"}, "model.layers='four' (str); expected an integer"),
        ({"model.layers": "4.0"}, "expected an integer"),
        ({"model.tied": "maybe"}, "expected true or false"),
        ({"model.layers": "0"}, "model: layers=0; use layers >= 1"),
        ({"task.kind": "tex", "task.path": "x"}, "unknown task.kind 'tex'; did you mean 'text'?"),
        ({"task.kind": "text", "task.pth": "x"}, "unknown setting task.pth; did you mean 'path'?"),
        ({"task.path": "x"}, "unknown setting task.path"),
        ({"budget.kind": "x"}, "unknown setting budget.kind"),
        ({"model": "{"}, "is not JSON"),
        ({"model": "3", "model.layers": "4"}, "are both set"),
        ({"model.layers": "4", "model": "3"}, "is set twice"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Run(), overrides)
    assert message in str(caught.value)


def test_a_tagged_config_cannot_become_another_kind() -> None:
    assert apply_overrides(Recall(), {"kind": "recall", "length": "3"}) == Recall(length=3)
    with pytest.raises(ConfigError, match="of kind 'recall' and cannot change"):
        apply_overrides(Recall(), {"kind": "text"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Unstorable:
    table: dict[str, int] = field(default_factory=dict)


def test_an_annotation_that_cannot_be_stored_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match=r"table is annotated .*dict"):
        from_dict(Unstorable, {"table": {}})


def test_only_config_instances_become_dictionaries() -> None:
    for wrong in (3, Model, {"layers": 1}):
        with pytest.raises(ConfigError, match="config dataclass instance"):
            to_dict(wrong)
