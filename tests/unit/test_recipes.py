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


@pytest.mark.parametrize("path", sorted((ROOT / "image/few-steps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_of_a_header_gives_all_that_lies_nowhere_yet(path: Path) -> None:
    command = path.read_text().splitlines()[1].removeprefix("# ")
    assert command.startswith(f"pare run recipes/image/few-steps/{path.name} ")
    tree = parse_tree(path.read_text(), str(path)).plain()
    places = {"model": tree["model"], **{f"data.{role}": name for role, name in tree["data"].items()}}
    places["evaluate.features"] = tree["evaluate"]["features"]
    assert all(name.startswith("./") and f" --set {key}=./" in command for key, name in places.items())


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
