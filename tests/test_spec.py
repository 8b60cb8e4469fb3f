"""Mechanism specs: writing and reading are inverse, and a registry accepts exactly what a constructor accepts."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import ConfigError, nearest
from turnout.spec import Registry, Spec, format_spec, parse_spec

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("ab1.:=,- e", max_size=8),
    st.sampled_from(["true", "3", "1e5", "(x)", "random:p=0.1,seed=2", ""]),
)
SPECS = st.builds(Spec, NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


@given(SPECS)
def test_a_spec_reads_back_as_it_was_written_with_the_same_types(spec: Spec) -> None:
    again = parse_spec(format_spec(spec))
    assert again == spec
    assert [type(value) for value in again.options.values()] == [type(value) for value in spec.options.values()]


@given(st.text("ab1:=,() .-e", max_size=16))
def test_any_text_is_read_or_rejected_with_a_config_error(text: str) -> None:
    try:
        spec = parse_spec(text)
    except ConfigError:
        return
    assert parse_spec(format_spec(spec)) == spec


def test_a_spec_string_gives_name_and_typed_options() -> None:
    assert parse_spec("linear") == Spec("linear", {})
    assert parse_spec("conv:kernel=16,form=signed,project=true,scale=0.5") == Spec(
        "conv", {"kernel": 16, "form": "signed", "project": True, "scale": 0.5}
    )
    assert str(parse_spec(" random: p=1e-2, seed=3 ")) == "random:p=0.01,seed=3"


def test_parentheses_keep_a_whole_spec_as_one_value() -> None:
    spec = parse_spec("shuffled:of=(random:p=0.01,seed=3),seed=1")
    assert spec.options == {"of": "random:p=0.01,seed=3", "seed": 1}
    assert format_spec(spec) == "shuffled:of=(random:p=0.01,seed=3),seed=1"


@pytest.mark.parametrize(
    "text", ["", ":", "1x", "a:", "a:b", "a:b=", "a:=1", "a:b=1,", "a:b=1,b=2", "a:b=(", "a:b=)(", "a b", "a:b=1e999"]
)
def test_a_malformed_spec_is_a_config_error_that_quotes_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "(", ")"])
def test_a_value_without_a_written_form_is_rejected(value: float | str) -> None:
    with pytest.raises(ConfigError):
        format_spec(Spec("a", {"b": value}))


def test_nearest_names_the_close_option_or_all_of_them() -> None:
    assert nearest("randm", ["random", "linear"]) == "; did you mean 'random'?"
    assert nearest("layers", ["model.layers", "steps"]) == "; did you mean 'model.layers'?"
    assert nearest("zzz", ["b", "a"]) == "; choose one of: a, b"
    assert nearest("zzz", []) == "; there are none"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry whose package has one module, `chance`, that registers `random`."""
    package = tmp_path / "mechanisms"
    package.mkdir()
    (package / "__init__.py").write_text(
        'from turnout.spec import Registry\nKINDS = Registry("router", "mechanisms")\n'
    )
    source = """
        from __future__ import annotations
        from typing import Literal
        from mechanisms import KINDS

        @KINDS.register("random")
        class RandomRouter:
            def __init__(self, width: Nowhere, *, groups: int = 1, p: float, seed: int | None = 0,
                         form: Literal["hard", "soft"] = "hard", tied: bool = False, label: str = "") -> None:
                self.got = dict(width=width, groups=groups, p=p, seed=seed, form=form, tied=tied, label=label)
    """
    (package / "chance.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mechanisms", "mechanisms.chance"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    kinds = importlib.import_module("mechanisms").KINDS
    assert isinstance(kinds, Registry)
    return kinds


def test_a_registry_finds_mechanisms_in_modules_that_nobody_imported(registry: Registry) -> None:
    assert registry.names() == ("random",)
    assert registry.get("random").__name__ == "RandomRouter"


def test_build_passes_context_and_options_in_the_annotated_types(registry: Registry) -> None:
    got = registry.build("random:p=1,seed=none,form=soft,tied=true", width=8, groups=2).got
    assert got == {"width": 8, "groups": 2, "p": 1.0, "seed": None, "form": "soft", "tied": True, "label": ""}
    assert type(got["p"]) is float
    assert registry.build(Spec("random", {"p": 0.5}), width=8).got["groups"] == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randm:p=1", "unknown router 'randm'; did you mean 'random'?"),
        ("random:p=1,sed=3", "no option 'sed'; did you mean 'seed'?"),
        ("random:p=1,groups=3", "no option 'groups'"),
        ("random:p=1,width=3", "no option 'width'"),
        ("random", "needs p; write random:p=..."),
        ("random:p=half", "random:p='half' (str); expected a number"),
        ("random:p=1,seed=1.5", "random:seed=1.5 (float); expected an integer or none"),
        ("random:p=1,form=hrad", "did you mean 'hard'?"),
        ("random:p=1,label=3", "expected a string"),
    ],
)
def test_a_spec_that_does_not_fit_the_constructor_says_what_would(registry: Registry, spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.build(spec, width=8, groups=2)
    assert message in str(caught.value)


def test_two_mechanisms_cannot_share_a_name_and_a_name_must_be_writable() -> None:
    kinds = Registry("router", "turnout")
    kinds.register("one")(dict)
    with pytest.raises(ConfigError, match="registered twice"):
        kinds.register("one")(list)
    with pytest.raises(ConfigError, match="cannot be written"):
        kinds.register("a:b")
