"""Where a lean call is asked for and there is none is reported at plan time, whoever asks, with a remedy that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import compress
from compress.errors import RecipeError, UserError
from compress.model.describing import describe
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.lean import SCHEDULERS, lean_faults, no_lean_call, takes, unusual
from compress.recipe.values import BaselineSpec, EvalSpec
from tests.families import tiny_image
from tests.stages import apply
from tests.tiny import tiny_diffusion

DATA = "zoo://digits/test"
CALL: dict[str, Any] = {"accelerate.call": {}}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion(tmp_path_factory.mktemp("sd"))


def planned(folder: Path, model: Path, stages: list[dict[str, Any]], **baseline: Any) -> Any:
    recipe = {
        "schema": 1,
        "name": "lean",
        "model": str(model),
        "data": {"evaluate": DATA},
        "stages": stages,
        "evaluate": {"metrics": ["latency"], "samples": 4, "baseline": baseline},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return compress.plan(folder / "recipe.yaml", cache=folder / "cache")


def test_a_plan_says_what_it_comes_to(generator: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, generator, [{"accelerate.steps": {"steps": 2}}, CALL])
    node = plan.nodes[-1]
    assert (node.id, node.reported.partition(";")[0]) == ("accelerate.call", "call path: stock → lean")
    assert node.expected.settings.lean
    assert node.expected.settings.needs_pare
    assert not plan.nodes[0].expected.settings.lean


@pytest.mark.parametrize(
    ("stages", "baseline", "message"),
    [
        ([{"accelerate.steps": {"steps": 2, "scheduler": "dpm-solver++"}}, CALL], {}, "DPMSolverMultistepScheduler"),
        ([CALL, {"accelerate.steps": {"steps": 2, "scheduler": "dpm-solver++"}}], {}, "DPMSolverMultistepScheduler"),
        ([CALL], {"scheduler": "unipc"}, "UniPCMultistepScheduler"),
        ([CALL, CALL], {}, "called the lean way already"),
    ],
)
def test_a_scheduler_that_is_not_walked_is_refused_when_planning(
    generator: Path, tmp_path: Path, stages: list[dict[str, Any]], baseline: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        planned(tmp_path, generator, stages, **baseline)
    (problem,) = error.value.problems
    assert message in problem.message
    assert "recipe.yaml:" in problem.place


def test_without_the_stage_the_same_recipe_works(generator: Path, tmp_path: Path) -> None:
    """What the remedy says."""
    assert planned(tmp_path, generator, [{"accelerate.steps": {"steps": 2}}], scheduler="unipc").nodes


def test_a_pipeline_without_a_lean_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"there is a lean call for FluxPipeline, .*, and this is a PixArtAlphaPipeline"
    ):
        planned(tmp_path, tiny_image(tmp_path, "pixart-alpha"), [CALL])


def test_another_verb_is_reported_the_same(generator: Path, tmp_path: Path) -> None:
    made, _ = apply("accelerate.call", describe(generator), tmp_path / "out")
    assert json.loads((made.path / "pare.json").read_text())["settings"]["lean"] is True
    assert describe(made.path).settings == made.settings
    spec = EvalSpec(baseline=BaselineSpec(scheduler="unipc"), samples=4)
    with pytest.raises(UserError, match="walks the steps of DDIMScheduler, and its scheduler is UniPC"):
        compress.evaluate(made.path, generator, metrics=["size"], data=DATA, spec=spec, cache=tmp_path / "cache")


def test_arguments_that_an_artifact_brings_are_held_against_it(generator: Path) -> None:
    lean = describe(generator).calling_lean().calling(eta=0.3, guidance_scale=2.0)
    (fault,) = lean_faults(lean, lean.settings.call)
    assert (fault.argument, fault.message) == ("eta", "the lean call of StableDiffusionPipeline takes no eta")
    assert not list(lean_faults(lean.calling_lean(False), lean.settings.call))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_what_a_lean_call_takes_is_what_the_stock_call_takes(kind: str) -> None:
    usual = call_arguments(kind)
    assert usual is not None
    assert takes(kind) <= usual.keys()
    assert not unusual(kind, {name: value for name, value in usual.items() if value is not None}, usual)
    assert unusual(kind, {"wings": None, "return_dict": False}, usual) == ("wings",)
    assert unusual(kind, {"latents": [1]}, usual) == ("latents",)


@pytest.mark.parametrize("setting", ["thresholding", "stochastic_sampling", "invert_sigmas", "use_flow_sigmas"])
def test_settings_that_make_other_steps_have_no_lean_call(setting: str) -> None:
    kind, scheduler = "FluxPipeline", "FlowMatchEulerDiscreteScheduler"
    assert no_lean_call(kind, scheduler, {}) == ""
    assert setting in no_lean_call(kind, scheduler, {setting: True})
    assert not no_lean_call(kind, scheduler, {setting: False})
