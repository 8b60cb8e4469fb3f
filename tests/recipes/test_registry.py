from __future__ import annotations

import subprocess
import sys

import pytest

from turnout.config import from_dict, to_dict
from turnout.errors import ConfigError
from turnout.recipes import get_recipe, recipe, recipe_names
from turnout.train.config import RunConfig


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_gives_a_config_that_survives_the_manifest(name: str) -> None:
    config = get_recipe(name).example()
    assert isinstance(config, RunConfig) and from_dict(RunConfig, to_dict(config)) == config
    assert get_recipe(name).summary and "\n" not in get_recipe(name).summary


def test_the_basic_recipes_are_there_and_called_after_their_names() -> None:
    for name in ("recall", "recall_hard", "text"):
        assert get_recipe(name).example().name == name


def test_overrides_reach_nested_fields_and_unknown_ones_name_the_nearest() -> None:
    config = get_recipe("recall").config({"model.layers": "2", "seed": "7"})
    assert (config.model.layers, config.seed) == (2, 7)
    with pytest.raises(ConfigError, match=r"unknown setting model\.layer; did you mean 'model\.layers'"):
        get_recipe("recall").config({"model.layer": "2"})


def test_a_setting_without_a_default_is_asked_for_by_its_key() -> None:
    text = get_recipe("text")
    with pytest.raises(ConfigError, match=r"recipe 'text' needs task\.path.*--task\.path"):
        text.config()
    config = text.config({"task.path": "a.txt", "task.length": "64"})
    assert config.task.path == "a.txt" and config.task.length == 64
    assert text.example().task.path == "<needed>"


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'recal'; did you mean 'recall'"):
        get_recipe("recal")


def test_a_name_cannot_be_taken_twice_and_the_function_stays_itself() -> None:
    def build() -> RunConfig:
        return RunConfig()

    with pytest.raises(ConfigError, match="recipe 'recall' is registered twice"):
        recipe("recall", "again")(build)
    assert get_recipe("recall").build is __import__("turnout.recipes.basics", fromlist=["recall"]).recall


def test_recipes_load_without_torch() -> None:
    code = "import sys; from turnout.recipes import recipe_names; recipe_names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
