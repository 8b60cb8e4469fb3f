from __future__ import annotations

import dataclasses
import importlib

import pytest

from turnout.cli import VERBS
from turnout.cli.help import field_docs, verb_help
from turnout.config import flatten
from turnout.models.config import ModelConfig, RoutingConfig
from turnout.recipes import get_recipe
from turnout.tasks import task_kinds
from turnout.train.config import (
    BudgetConfig,
    CurriculumConfig,
    JointConfig,
    LoopConfig,
    OptimConfig,
    RunConfig,
)

CONFIGS = [
    RunConfig, ModelConfig, RoutingConfig, CurriculumConfig, JointConfig, BudgetConfig, OptimConfig, LoopConfig,
    *task_kinds().values(),
]  # fmt: skip


def options(verb: str) -> type:
    return importlib.import_module(f"turnout.cli.verbs.{verb}").Options


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_setting_has_a_line_of_documentation(config: type) -> None:
    nested = {"task", "model", "schedule", "optim", "loop", "routing"}
    names = {field.name for field in dataclasses.fields(config)} - nested
    assert names <= field_docs(config).keys()


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_every_verb_is_documented_and_shown(verb: str) -> None:
    cls = options(verb)
    text = verb_help(verb, cls, [])
    assert text.startswith(f"usage: turnout {verb}")
    for field in dataclasses.fields(cls):
        assert field_docs(cls)[field.name]
        shown = field.name.upper() if field.name in cls.positional else f"--{field.name.replace('_', '-')}"
        assert f"  {shown}" in text


@pytest.mark.parametrize("recipe", ["recall", "text", "recall_hard"])
def test_train_help_lists_every_setting_with_its_value_in_the_recipe(recipe: str) -> None:
    text = verb_help("train", options("train"), [recipe])
    for key, value in flatten(get_recipe(recipe).example()).items():
        if key != "name":
            shown = str(value).lower() if value is None or isinstance(value, bool) else str(value)
            assert f"--{key} {shown}" in text
    assert "one of curriculum, joint, budget" in text


def test_one_line_may_document_several_fields() -> None:
    docs = field_docs(ModelConfig)
    assert docs["heads"] == "query heads" and docs["kv_heads"] == "key/value heads (None = heads)"
    docs = field_docs(LoopConfig)
    assert docs["eval_every"] == docs["eval_sequences"]
