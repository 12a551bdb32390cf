"""What pyproject.toml asks for and what constraints.txt pins fit each other, in every extra."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Built or chosen where they are installed, for one machine's compiler or GPU.
NOT_PINNED = {"llama-cpp-python"}


def pins() -> dict[str, str]:
    """The version that each constraint allows, by normalised name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    found: dict[str, str] = {}
    for asked in map(Requirement, filter(None, lines)):
        (only,) = asked.specifier
        assert only.operator == "==", f"{asked}: a constraint is one version"
        assert canonicalize_name(asked.name) not in found, f"{asked.name} is pinned twice"
        found[canonicalize_name(asked.name)] = only.version
    return found


def everything(extra: str, above: tuple[str, ...] = ()) -> list[Requirement]:
    """What an extra asks for, the extras of pare that it names included."""
    assert extra not in above, f"{extra} asks for itself"
    asked = [Requirement(text) for text in EXTRAS[extra]]
    own = [name for each in asked if each.name == PROJECT["name"] for name in each.extras]
    others = [each for each in asked if each.name != PROJECT["name"]]
    return [*others, *(each for name in own for each in everything(name, (*above, extra)))]


def asked_for() -> list[Requirement]:
    return [*map(Requirement, PROJECT["dependencies"]), *(each for extra in EXTRAS for each in everything(extra))]


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_pin_is_a_version_that_is_asked_for(extra: str) -> None:
    pinned = pins()
    asked = everything(extra) if extra else [Requirement(text) for text in PROJECT["dependencies"]]
    assert asked
    for each in asked:
        version = pinned.get(canonicalize_name(each.name))
        assert version is None or each.specifier.contains(version), f"{each} against {version}"


def test_whatever_is_asked_for_is_pinned() -> None:
    names = {canonicalize_name(each.name) for each in asked_for()}
    assert names - pins().keys() == NOT_PINNED


def test_what_checks_the_house_is_pinned_too() -> None:
    assert {"ruff", "mypy", "pytest", "hypothesis", "pandas-stubs"} <= pins().keys()


def test_gptqmodel_can_be_installed_beside_the_rest() -> None:
    """It pins numpy to this one version, and reads Hugging Face models through libraries of its extra `hf`."""
    assert pins()["numpy"] == "2.2.6"
    (gptq,) = everything("gptq")
    assert (gptq.extras, str(gptq.specifier)) == ({"hf"}, "<7.7,>=7.6")
