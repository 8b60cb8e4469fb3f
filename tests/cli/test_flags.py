from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from turnout.cli.flags import Flags, parse
from turnout.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain(Flags):
    """A verb without settings."""

    positional: ClassVar[tuple[str, ...]] = ("run",)
    run: str
    length: int | None = None
    share: float = 0.5
    mode: Literal["fast", "slow"] = "fast"
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Settable(Flags):
    """A verb that takes settings and any number of words."""

    positional: ClassVar[tuple[str, ...]] = ("ids",)
    overridable: ClassVar[bool] = True
    ids: tuple[str, ...] = ()
    name: str | None = None


def test_flags_are_read_as_their_fields_say_in_both_spellings() -> None:
    call = parse(Plain, "eval", ["r", "--length", "8", "--share=0.25", "--mode", "slow", "--dry-run", "--json"])
    assert call.options == Plain(run="r", length=8, share=0.25, mode="slow", dry_run=True, json=True)
    assert call.command == "turnout eval r --length 8 --share=0.25 --mode slow --dry-run --json"
    assert parse(Plain, "eval", ["--dry-run=no", "--length=-3", "r"]).options == Plain(run="r", length=-3)
    assert parse(Plain, "eval", ["--length", "-3", "--", "--odd--name"]).options == Plain(run="--odd--name", length=-3)


def test_settings_are_kept_as_text_and_dashes_may_stand_for_underscores() -> None:
    call = parse(Settable, "train", ["a", "--model.kv-heads", "2", "b", "--seed=3", "--name", "x", "--task.path=a=b c"])
    assert call.options == Settable(ids=("a", "b"), name="x")
    assert call.overrides == {"model.kv_heads": "2", "seed": "3", "task.path": "a=b c"}
    assert call.command.endswith("'--task.path=a=b c'")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "turnout eval needs RUN; see turnout eval --help"),
        (["r", "s"], "unexpected 's'; turnout eval takes RUN"),
        (["r", "--lenght", "4"], "unknown option --lenght; did you mean 'length'"),
        (["r", "--model.layers", "4"], "unknown option --model.layers; see turnout eval --help"),
        (["r", "--length"], "option --length needs a value; write --length VALUE"),
        (["r", "--length", "--json"], "option --length needs a value"),
        (["r", "--length", "x"], "--length='x' .*expected an integer"),
        (["r", "--length", "1", "--length=2"], "option --length is given twice .'1' and '2'|given twice"),
        (["r", "--mode", "fats"], "--mode='fats' is not a choice; did you mean 'fast'"),
        (["r", "--dry-run=perhaps"], "--dry-run='perhaps'"),
        (["r", "-l"], "unknown option -l; options start with two dashes"),
        (["r", "--run", "s"], "unknown option --run"),
    ],
)
def test_a_wrong_word_says_what_would_be_right(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Plain, "eval", words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "4"], "unknown option --layers; did you mean 'model.layers'"),
        (["--modle.layers", "4"], "unknown option --modle.layers; did you mean 'model.layers'"),
        (["--nmae", "4"], "unknown option --nmae; did you mean 'name'"),
        (["--zzz", "4"], "unknown option --zzz; see turnout train --help"),
        (["--seed", "1", "--seed", "2"], "option --seed is given twice"),
    ],
)
def test_an_option_that_is_no_setting_names_the_nearest_of_both_kinds(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Settable, "train", words)


def test_settings_where_they_have_no_effect_are_refused() -> None:
    call = parse(Settable, "show", ["--model.layers", "2"])
    with pytest.raises(ConfigError, match=r"--model\.layers has no effect here: a run is what it was; leave it out"):
        call.refuse_overrides("a run is what it was")
    parse(Settable, "show", []).refuse_overrides("nothing was given")
