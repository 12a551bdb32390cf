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
