"""Every recipe that ships reads, and compares with the published schema; nobody lists them."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from compress.catalogue import metric_names, stage_names
from compress.recipe.reading import read_recipes
from compress.recipe.schema import recipe_schema
from compress.recipe.yaml_tree import parse_tree

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))


def test_there_are_recipes_of_both_kinds() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in RECIPES} >= {"text", "image", "quickstart.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_recipe_reads_and_holds_against_the_schema(path: Path) -> None:
    recipes = read_recipes(path)
    assert all(recipe.stages and recipe.evaluate.metrics for recipe in recipes)
    jsonschema.Draft202012Validator(recipe_schema()).validate(parse_tree(path.read_text(), str(path)).plain())


OWN = [path for path in RECIPES if "\nmodel: ./" in path.read_text()]  # recipes for models that people bring


@pytest.mark.parametrize("path", OWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_of_a_header_gives_all_that_lies_nowhere_yet(path: Path) -> None:
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    assert lines[-2].endswith(" For a folder of your own:")
    assert lines[-1].startswith(f"pare run recipes/{path.relative_to(ROOT)} ")
    tree = parse_tree(path.read_text(), str(path)).plain()
    places = {"model": tree["model"], **{f"data.{role}": name for role, name in tree["data"].items()}}
    if name := tree["evaluate"].get("features"):
        places["evaluate.features"] = name
    assert all(name.startswith("./") and f" --set {key}=./" in lines[-1] for key, name in places.items())


def test_the_schema_knows_every_stage_and_metric_on_disk() -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = {key: schema["properties"][key]["anyOf"][0] for key in ("stages", "gates")}
    alone, mapping, kept, _ = sections["stages"]["items"]["anyOf"]
    assert tuple(mapping["properties"]) == stage_names()
    assert tuple(kept["properties"]) == (*stage_names(), "keep")
    assert set(stage_names()) - set(alone["enum"]) == {
        "accelerate.size",
        "accelerate.steps",
        "distill.steps",
    }  # with required parameters
    assert tuple(sections["gates"]["properties"]) == metric_names()
