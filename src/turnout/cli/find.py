"""From the word a user writes to the run or the recipe it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from turnout.config import apply_overrides, from_dict
from turnout.errors import ConfigError, DataError, nearest
from turnout.recipes import get_recipe, recipe_names
from turnout.train.config import RunConfig
from turnout.train.rundir import RunDir, list_runs


def is_run(word: str, root: str) -> bool:
    """Whether `word` is a folder, or the name of one below `root`; a path is never a recipe."""
    return word not in recipe_names() and (Path(word).is_dir() or (Path(root) / word).is_dir())


def find_run(word: str, root: str) -> RunDir:
    """The run at the path `word`, or the run of that name below `root`.

    Raises:
        DataError: there is none (names the nearest), or the folder is no run.
    """
    path = Path(word)
    if not path.is_dir() and (Path(root) / word).is_dir():
        path = Path(root) / word
    if path.is_dir():
        return RunDir.open(path)
    where = f"no run {word!r}: neither a folder nor a run in {root}"
    raise DataError(f"{where}{nearest(path.name, list_runs(root))}; turnout list runs")


def run_config(run: RunDir, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """The config that a run was started with."""
    return apply_overrides(from_dict(RunConfig, run.config), overrides or {})


def seeds_of(run: RunDir) -> list[RunDir]:
    """The run and those beside it whose configs differ from its own in the seed alone, by seed."""
    own = run_config(run)
    beside = [RunDir.open(run.path.parent / name) for name in list_runs(run.path.parent)]
    same = [(run_config(other).seed, other) for other in beside if replace(run_config(other), seed=own.seed) == own]
    return [other for _, other in sorted(same, key=lambda pair: pair[0])]


def find_config(word: str, overrides: Mapping[str, str], root: str) -> RunConfig:
    """The config of a recipe, to be shown: settings that only the user knows may be missing."""
    if word in recipe_names():
        return get_recipe(word).example(overrides)
    raise ConfigError(
        f"{word!r} is neither a recipe nor a run in {root}{nearest(word, [*recipe_names(), *list_runs(root)])}"
    )


def last_unfinished(root: str, config: RunConfig | None) -> RunDir:
    """The newest run below `root` that has no summary, with this config when one is given.

    Raises:
        ConfigError: there is none.
    """
    for name in reversed(list_runs(root)):
        run = RunDir.open(Path(root) / name)
        if run.summary() is None and (config is None or run_config(run) == config):
            return run
    what = "unfinished run" if config is None else f"unfinished run of {config.name!r} with these settings"
    raise ConfigError(f"no {what} in {root} to resume; name one with --name, or start it without --resume")


def trained(run: RunDir) -> RunDir:
    """The run itself; DataError when it has not been trained to the end."""
    if run.model_path.exists():
        return run
    raise DataError(f"run {run.path} is not finished, so it has no trained weights; {resume_hint(run)}")


def resume_hint(run: RunDir) -> str:
    """What to type to go on with a run."""
    root = "" if run.path.parent == Path("runs") else f" --runs {run.path.parent}"
    return f"go on with: turnout train --resume --name {run.name}{root}"
