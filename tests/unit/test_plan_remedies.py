"""Remedies that work: a bound is reported whole, each stage that cannot work on a family is named, each refusal has its fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from pydantic import Field

from compress.catalogue import find_stage
from compress.commands.explain_parameters import parameter_lines
from compress.errors import Problem, RecipeError, UserError
from compress.exits import exit_code
from compress.model.depth_units import depth_pools
from compress.params import Params
from compress.planning.plan import make_plan
from compress.recipe.reading import read_recipes
from compress.recipe.validate import check_values
from compress.store.cache import Cache
from tests.fakes import pipeline, recipe, step


class Bounded(Params):
    prompts: int = Field(8, ge=1, multiple_of=8, description="captions")
    share: float | None = Field(None, gt=0, le=1, description="a share")


def test_a_number_that_is_no_multiple_is_reported_of_which() -> None:
    problems: list[Problem] = []
    assert check_values(Bounded, {"prompts": 4}, "demo", "", problems) is None
    (problem,) = problems
    assert problem.fix == "give a whole number at least 1 and a multiple of 8: captions"
    assert check_values(Bounded, {"prompts": 16}, "demo", "", []) == Bounded(prompts=16)


def test_what_a_number_may_be_is_explained() -> None:
    lines = list(parameter_lines(Bounded))
    assert "  prompts: int, ≥ 1, a multiple of 8 (default 8)" in lines
    assert "  share: float | null, > 0, ≤ 1 (default null)" in lines


def of_class(folder: Path, denoiser: str) -> Path:
    made = pipeline(folder)
    index = json.loads((made / "model_index.json").read_text())
    (made / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", denoiser]}))
    (made / "unet/config.json").write_text(json.dumps({"_class_name": denoiser}))
    return made


def test_every_stage_that_cannot_work_on_a_family_is_named(tmp_path: Path) -> None:
    steps, after, names = [], "source", ("prune.depth", "prune.width", "distill.features")
    for name in names:
        steps.append(step(find_stage(name), after=after, place=name))
        after = name
    data = {"train": "zoo://digits/train", "calibration": "zoo://digits/validation"}
    model = of_class(tmp_path / "model", "Kandinsky3UNet")
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe(model, *steps, data=data), Cache(tmp_path / "cache"))
    reported = [p for p in caught.value.problems if "pare does not know their family" in p.message]
    assert [p.place for p in reported] == list(names)
    assert all(p.fix for p in caught.value.problems)


def test_a_unet_that_is_not_as_deep_both_ways_is_refused_with_what_to_use() -> None:
    config = {"block_out_channels": [32, 64], "reverse_transformer_layers_per_block": [[2, 1, 1], [1, 1, 1]]}
    with pytest.raises(UserError) as caught:
        depth_pools("UNet2DConditionModel", config)
    assert caught.value.problems[0].fix == "use prune.width"


def test_one_remedy_for_several_in_a_row_stands_once(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(name: str) -> None:
        raise RecipeError(
            tuple(Problem("", message, fix) for message, fix in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "x")))
        )

    app = typer.Typer()
    app.command()(fails)
    assert exit_code(app, ["r.yaml"]) == 2
    assert capsys.readouterr().err == "a\nb\n  fix: x\nc\n  fix: y\nd\n  fix: x\n4 problems\n"


def test_a_model_that_is_named_without_its_place_is_reported_how_to_write_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("schema: 1\nname: a\nmodel: models/sd21\n")
    with pytest.raises(RecipeError) as caught:
        read_recipes(tmp_path / "r.yaml")
    reported = next(p for p in caught.value.problems if "neither a zoo model" in p.message)
    assert reported.fix.startswith("a folder is ./models/sd21, a model of the hub hf://models/sd21@")
