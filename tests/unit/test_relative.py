"""A relative model or data file is looked for where its line was written, whatever recipe extends that one."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.recipe.reading import read_recipes

PARENT = "schema: 1\nname: parent\nmodel: ./model\ndata: {evaluate: texts.txt}\n"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("parent", "child"):
        (tmp_path / name).mkdir()
    (tmp_path / "parent" / "recipe.yaml").write_text(PARENT)
    (tmp_path / "child" / "recipe.yaml").write_text(
        "extends: ../parent/recipe.yaml\nname: child\ndata: {calibration: own.txt}\n"
    )
    return tmp_path / "parent", tmp_path / "child"


def test_what_is_inherited_starts_at_the_file_it_was_written_in(places: tuple[Path, Path]) -> None:
    parent, child = places
    (recipe,) = read_recipes(child / "recipe.yaml")
    assert recipe.folder("model").resolve() == parent
    assert recipe.folder("data.evaluate").resolve() == parent
    assert recipe.folder("data.calibration") == child


def test_what_the_command_line_sets_starts_at_the_current_folder(places: tuple[Path, Path]) -> None:
    (recipe,) = read_recipes(places[0] / "recipe.yaml", ["model=./other"])
    assert recipe.folder("model") == Path.cwd()
    assert recipe.folder("data.evaluate") == places[0]


def test_what_a_variable_fills_in_starts_where_the_variable_is_used(places: tuple[Path, Path]) -> None:
    parent, child = places
    (parent / "recipe.yaml").write_text(PARENT.replace("./model", "./${which}") + "vars: {which: small}\n")
    (child / "recipe.yaml").write_text("extends: ../parent/recipe.yaml\nvars: {which: large}\n")
    (recipe,) = read_recipes(child / "recipe.yaml")
    assert (recipe.model, recipe.folder("model").resolve()) == ("./large", parent)
