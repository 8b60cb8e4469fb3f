"""The package as users meet it: light to import, complete when asked, and pinned to what its metadata allows."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import turnout

ROOT = Path(__file__).parents[1]
PINS = dict(
    line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "module", ["turnout", "turnout.errors", "turnout.spec", "turnout.config", "turnout.models.config"]
)
def test_light_modules_load_nothing_outside_the_standard_library(module: str) -> None:
    code = (
        f"import sys; before = set(sys.modules); import {module}; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["turnout"]


@pytest.mark.parametrize("name", [name for name in turnout.__all__ if name != "__version__"])
def test_every_public_name_loads_on_first_use(name: str) -> None:
    assert getattr(turnout, name).__name__ == name
    assert name in dir(turnout)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atend'"):
        _ = turnout.atend


def test_the_version_is_a_release_number_read_from_the_package(project: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", turnout.__version__)
    assert "version" in project["project"]["dynamic"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(turnout.__file__)


def test_every_direct_dependency_is_pinned_within_its_range(project: dict[str, Any]) -> None:
    core, extras = project["project"]["dependencies"], project["project"]["optional-dependencies"]
    for requirement in map(Requirement, chain(core, *extras.values())):
        if requirement.name != "turnout":
            assert requirement.specifier.contains(PINS[requirement.name]), requirement


def test_pins_are_exact_versions_without_urls() -> None:
    assert PINS["torch"] == "2.13.0" and PINS["triton"] == "3.7.1"
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in PINS.values())


def test_the_core_stays_light(project: dict[str, Any]) -> None:
    names = {Requirement(line).name for line in project["project"]["dependencies"]}
    assert names == {"torch", "numpy", "safetensors", "rich"}


def test_the_wheel_carries_the_results_and_the_type_marker(project: dict[str, Any]) -> None:
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"results": "turnout/_results"}
    assert (ROOT / "results" / "README.md").is_file()
    assert (Path(turnout.__file__).parent / "py.typed").is_file()
