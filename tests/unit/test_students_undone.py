"""A student of few steps, and what stages behind its teaching would undo: known from the plan, planned or saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, LCMScheduler
from pydantic import ValidationError

from compress.artifact import Provenance, write_manifest
from compress.catalogue import find_stage
from compress.errors import RecipeError
from compress.model.describing import describe
from compress.planning.plan import Plan, make_plan
from compress.recipe.values import BaselineSpec, EvalSpec
from compress.stages.distill.steps import CONSISTENCY_RATE, RATE, DistillSteps
from compress.store.cache import Cache
from tests.editors import tiny_editor
from tests.fakes import pipeline, recipe, step

Asked = tuple[str, dict[str, Any]]
STUDENT: Asked = ("distill.steps", {"steps": 4, "guidance": 3.0})
CONSISTENT: Asked = ("distill.steps", {"steps": 4, "guidance": 3.0, "method": "consistency", "origin": 8})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = pipeline(tmp_path / "model")
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (made / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1}
    (made / "unet/config.json").write_text(json.dumps({"block_out_channels": [8, 8], **blocks}))
    return made


def plan(
    model: Path, *asked: Asked, guidance: float | None = None, train: str = "zoo://digits/train", **baseline: Any
) -> Plan:
    steps, after = [], "source"
    for number, (name, given) in enumerate(asked):
        taught = name in ("distill.steps", "distill.guidance")
        params = {**({"captions": 8} if taught else {}), **given}
        inputs = {"teacher": params.pop("teacher")} if "teacher" in params else params.pop("inputs", {})
        found = step(find_stage(name), id=f"{number}", after=after, place=f"r.yaml:{number}", inputs=inputs, **params)
        steps.append(found)
        after = f"{number}"
    data = {"train": train}
    spec = EvalSpec(baseline=BaselineSpec(guidance=guidance, **baseline))
    return make_plan(recipe(model, *steps, data=data, evaluate=spec), Cache(model.parent / "cache"))


def refusal(model: Path, *asked: Asked) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(model, *asked)
    (problem,) = caught.value.problems
    assert problem.place == f"r.yaml:{len(asked) - 1}"
    return f"{problem.message}: {problem.fix}"


@pytest.mark.parametrize(
    ("student", "then", "message"),
    [
        (STUDENT, {"steps": 2}, ("2 steps undo", "it was taught 4 steps")),
        (STUDENT, {"steps": 8}, ("8 steps undo ",)),
        (STUDENT, {"steps": 1}, ("1 step undoes",)),
        (STUDENT, {"steps": 2, "scheduler": "euler"}, ("2 steps and scheduler euler undo ",)),
        (STUDENT, {"steps": 4, "scheduler": "dpm-solver++"}, ("scheduler dpm-solver++ undoes",)),
        (STUDENT, {"steps": 4, "spacing": "leading"}, ("spacing leading undoes",)),
        (STUDENT, {"steps": 4}, ()),
        (CONSISTENT, {"steps": 2}, ()),
        (CONSISTENT, {"steps": 8}, ()),
        (CONSISTENT, {"steps": 2, "scheduler": "lcm"}, ()),
        (STUDENT, {"steps": 4, "scheduler": "ddim", "spacing": "trailing"}, ()),
        (CONSISTENT, {"steps": 2, "scheduler": "euler"}, ("scheduler euler undoes", "up to 8 steps")),
        (("distill.guidance", {"guidance": 3.0}), {"steps": 2}, ()),
    ],
)
def test_a_call_that_a_student_was_not_taught_for_is_warned_of(
    student: Asked, then: dict[str, Any], message: Sequence[str], model: Path
) -> None:
    warnings = [w for w in plan(model, student, ("accelerate.steps", then)).warnings if "undo" in w]
    assert len(warnings) == bool(message)
    assert all(part in warnings[0] for part in message)


def test_a_student_that_lies_on_disk_is_known_as_one(model: Path) -> None:
    source = describe(model)
    made = Provenance("distill.steps", 1, {"steps": 4, "method": "progressive", "origin": None}, "key")
    write_manifest(replace(source, lineage=(made,)))
    (warning,) = plan(model, ("accelerate.steps", {"steps": 2})).warnings
    assert "2 steps undo" in warning
    (warning,) = plan(model, ("distill.steps", {"steps": 3})).warnings
    assert "its teacher was taught 4 steps, and is to go 6 of them" in warning


FEATURES: Asked = ("distill.features", {"prompts": 8})
FOLDED: Asked = ("distill.guidance", {"guidance": 3.0})


@pytest.mark.parametrize(
    ("student", "teacher", "steps", "message"),
    [
        (STUDENT, "source", 4, "unlearn what distill.steps taught"),
        (CONSISTENT, "source", 8, "unlearn what distill.steps taught"),
        (FOLDED, "source", 20, "unlearn what distill.guidance taught"),
        (STUDENT, "0", 4, ""),
        (CONSISTENT, "0", 8, ""),
        (FOLDED, "0", 20, ""),
    ],
)
def test_what_a_student_was_taught_is_not_unlearnt_from_another_teacher(
    student: Asked, teacher: str, steps: int, message: str, model: Path
) -> None:
    """Between the two may stand what makes the student smaller: it learns again from the step that taught it."""
    again = ("distill.features", {"prompts": 8, "denoising_steps": steps, "inputs": {"teacher": teacher}})
    for chain in ((student, again), (student, ("accelerate.size", {"height": 64, "width": 64}), again)):
        if not message:
            assert plan(model, *chain, guidance=3.0).warnings == ()
            continue
        with pytest.raises(RecipeError) as caught:
            plan(model, *chain)
        (problem,) = caught.value.problems
        assert problem.place == f"r.yaml:{len(chain) - 1}"
        assert message in problem.message
        assert "put this stage in front of that one" in problem.fix
    assert plan(model, FEATURES, student).nodes  # which is the remedy


def test_a_student_that_lies_on_disk_learns_nothing_from_what_was_not_taught(model: Path) -> None:
    original = describe(model)
    made = Provenance("distill.steps", 1, {"steps": 4, "method": "progressive", "origin": None}, "key")
    student, stage = replace(original, lineage=(made,)), find_stage("distill.features")
    other = replace(student, lineage=(replace(made, params={**made.params, "steps": 8}),))
    for teacher, message in ((original, True), (other, True), (student, False)):
        found = [one.message for one in stage.unfit(student, stage.params(), {"teacher": teacher})]
        assert any("unlearn" in one for one in found) == message


@pytest.mark.parametrize(
    ("student", "asked", "best"),
    [
        (STUDENT, None, 4),
        (STUDENT, 8, 4),
        (CONSISTENT, None, 8),
        (CONSISTENT, 5, 0),
        (STUDENT, 4, 0),
        (FOLDED, None, 0),
    ],
)
@pytest.mark.parametrize("name", ["distill.features", "distill.decoder"])
def test_calls_are_recorded_in_the_steps_that_a_student_was_taught(
    name: str, student: Asked, asked: int | None, best: int, model: Path
) -> None:
    """Reported nothing, distill.features records up to 20 steps, and distill.decoder as many as the student is called with."""
    (model / "vae/config.json").write_text(json.dumps({"block_out_channels": [8, 8], "latent_channels": 4}))
    given = {"denoising_steps": asked} if asked else {}
    inputs = {"teacher": "0"} if name == "distill.features" else {}
    last = (name, {"prompts": 8, **given, **({"inputs": inputs} if inputs else {})})
    found = [w for w in plan(model, student, last).warnings if "set denoising_steps" in w]
    wanted = best if name == "distill.features" or asked else 0
    assert [f"set denoising_steps: {wanted}" in one for one in found] == [True] * bool(wanted)


def test_guidance_is_folded_in_once(model: Path) -> None:
    assert "nothing is left to fold in" in refusal(model, STUDENT, ("distill.guidance", {"guidance": 3.0}))
    ladder = plan(model, ("distill.guidance", {"guidance": 3.0}), STUDENT, guidance=3.0)
    assert ladder.warnings == ()


@pytest.mark.parametrize(("mean", "latents"), [([0.0], "pictures"), ([0.0], "auto"), (None, "pictures")])
def test_images_of_which_a_vae_makes_latents_of_its_own_are_not_asked_for(
    mean: list[float] | None, latents: str, model: Path
) -> None:
    (model / "vae/config.json").write_text(json.dumps({"latents_mean": mean}))
    stage, source = find_stage("distill.steps"), describe(model)
    refused = stage.refuse(source, stage.params(steps=2, latents=latents))
    assert ("latents_mean" in refused) == (mean is not None and latents == "pictures")


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_that_is_none_teaches_nothing(scale: float, model: Path) -> None:
    assert "nothing to teach" in refusal(model, ("distill.guidance", {"guidance": scale}))


@pytest.mark.parametrize(("origin", "nearest"), [(30, 25), (600, 500), (20, 0), (1000, 0)])
def test_a_consistent_student_is_taught_the_levels_that_it_is_sampled_at(
    origin: int, nearest: int, model: Path
) -> None:
    asked = ("distill.steps", {"steps": 2, "method": "consistency", "origin": origin})
    if nearest:
        assert f"`origin` {origin} does not divide the 1000 levels" in refusal(model, asked)
        assert refusal(model, asked).endswith(f"set origin: {nearest}")
    else:
        assert plan(model, asked).nodes
    scheduler = LCMScheduler(original_inference_steps=origin)
    scheduler.set_timesteps(origin, original_inference_steps=origin)
    course = DDIMScheduler(timestep_spacing="trailing")
    course.set_timesteps(origin)
    assert (scheduler.timesteps.tolist() == course.timesteps.tolist()) == (not nearest)


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"steps": 600}, 1200),
        ({"steps": 200, "substeps": 6}, 1200),
        ({"steps": 4, "method": "consistency", "origin": 900}, 900),
        ({"steps": 400}, 0),
        ({"steps": 100, "substeps": 8}, 0),
    ],
)
def test_a_course_has_no_more_parts_than_the_training_schedule_has_levels(
    params: dict[str, Any], parts: int, model: Path
) -> None:
    file = model / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_train_timesteps": 800}))
    asked = ("distill.steps", params)
    if parts:
        assert f"make {parts} parts, and the training schedule has 800 levels" in refusal(model, asked)
    else:
        assert plan(model, asked).nodes


def test_a_student_that_is_its_own_teacher_learns_more_slowly_unless_it_is_reported_otherwise() -> None:
    consistent = DistillSteps.model_validate({"steps": 4, "method": "consistency"})
    assert consistent.learning_rate == CONSISTENCY_RATE < RATE == DistillSteps(steps=4).learning_rate
    assert DistillSteps(steps=4, method="consistency", learning_rate=1e-4).learning_rate == 1e-4


@pytest.mark.parametrize("stage", ["distill.steps", "distill.guidance"])
@pytest.mark.parametrize(
    ("taught", "baseline", "message"),
    [
        (3.0, 3.0, ""),
        (None, None, ""),
        (7.5, None, ""),
        (None, 7.5, ""),
        (3.0, None, "taught guidance 3, and the baseline generates with the pipeline's own 7.5"),
        (None, 3.0, "taught the pipeline's own guidance 7.5, and the baseline generates with 3"),
        (2.0, 3.0, "taught guidance 2, and the baseline generates with 3"),
    ],
)
def test_another_guidance_than_the_baselines_is_warned_of(
    stage: str, taught: float | None, baseline: float | None, message: str, model: Path
) -> None:
    params = {"steps": 2} if stage == "distill.steps" else {}
    warnings = plan(model, (stage, {**params, "guidance": taught}), guidance=baseline).warnings
    assert len(warnings) == bool(message)
    assert all(message in one for one in warnings)


@pytest.mark.parametrize(
    ("taught", "baseline", "said"),
    [
        ({"strength": 0.5}, {"strength": 0.9}, "the way of strength 0.5, and the baseline goes that of 0.9"),
        ({}, {"strength": 0.5}, "the way of strength 0.8, and the baseline goes that of 0.5"),
        ({"strength": 0.5}, {}, "the way of strength 0.5, and the baseline goes that of 0.8"),
        ({"strength": 0.5}, {"strength": 0.5}, ""),
        ({}, {}, ""),
    ],
)
def test_another_strength_than_the_baselines_is_warned_of(
    taught: dict[str, Any], baseline: dict[str, Any], said: str, tmp_path: Path
) -> None:
    editor = tiny_editor(tmp_path / "model", "StableDiffusionImg2ImgPipeline")
    train = "zoo://digits-edits/train"
    warnings = plan(
        editor, ("distill.steps", {"steps": 4, "guidance": 3.0, **taught}), guidance=3.0, train=train, **baseline
    ).warnings
    assert [said in one for one in warnings] == [True] * bool(said)


@pytest.mark.parametrize(
    ("taught", "baseline", "said"),
    [
        ({"image_guidance": 3.0}, {"image_guidance": 1.5}, "taught image_guidance 3, and the baseline edits with 1.5"),
        ({}, {"image_guidance": 2.0}, "taught image_guidance 1.5, and the baseline edits with 2"),
        ({"image_guidance": 2.0}, {"image_guidance": 2.0}, ""),
        (
            {"guidance": 1.0},
            {"image_guidance": 2.0},
            "taught guidance 1, and the baseline generates with 3",
        ),  # and led by no image
        ({"negative_prompt": "blue"}, {}, "taught the negative prompt 'blue', and the baseline has none"),
        ({"negative_prompt": "blue"}, {"negative_prompt": "red"}, "'blue', and the baseline has 'red'"),
        ({"negative_prompt": "blue"}, {"negative_prompt": "blue"}, ""),
    ],
)
def test_what_else_is_taught_otherwise_is_warned_of(
    taught: dict[str, Any], baseline: dict[str, Any], said: str, tmp_path: Path
) -> None:
    editor = tiny_editor(tmp_path / "model", "StableDiffusionInstructPix2PixPipeline")
    asked = ("distill.steps", {"steps": 4, "guidance": 3.0, **taught})
    warnings = plan(editor, asked, guidance=3.0, train="zoo://digits-edits/train", **baseline).warnings
    assert [said in one for one in warnings] == [True] * bool(said), warnings


@pytest.mark.parametrize(
    ("given", "baseline", "said"),
    [
        ({"steps": 20}, {"steps": 20}, "20 steps are no fewer than the baseline's 20: this saves nothing"),
        ({"steps": 60}, {}, "60 steps are no fewer than the baseline's 50"),
        ({"steps": 19}, {"steps": 20}, ""),
        ({"steps": 20, "scheduler": "dpm-solver++"}, {"steps": 20}, ""),
        ({"steps": 20, "spacing": "trailing"}, {"steps": 20}, ""),
    ],
)
def test_as_many_steps_as_before_are_warned_of(
    given: dict[str, Any], baseline: dict[str, Any], said: str, model: Path
) -> None:
    warnings = plan(model, ("accelerate.steps", given), **baseline).warnings
    assert [said in one for one in warnings] == [True] * bool(said), warnings


def test_a_guidance_by_the_image_without_one_by_the_text_is_refused(tmp_path: Path) -> None:
    editor = describe(tiny_editor(tmp_path / "model", "StableDiffusionInstructPix2PixPipeline"))
    params = DistillSteps(steps=2, guidance=1.0, image_guidance=2.0)
    assert "ignores image_guidance unless guidance is above 1" in find_stage("distill.steps").refuse(editor, params)


def test_the_remedy_for_a_negative_prompt_that_a_student_ignores_is_to_teach_it(model: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(model, ("distill.steps", {"steps": 2, "guidance": 3.0}), guidance=3.0, negative_prompt="red")
    (problem,) = caught.value.problems
    assert "ignores a negative prompt" in problem.message
    assert problem.fix == "leave negative_prompt out, or teach it: `negative_prompt` of distill.steps"


@pytest.mark.parametrize("scale", [1e9, float("inf"), float("nan"), -1.0])
def test_no_guidance_is_absurd(scale: float) -> None:
    with pytest.raises(ValidationError):
        DistillSteps(steps=2, guidance=scale)
    with pytest.raises(ValidationError):
        BaselineSpec(guidance=scale)


@pytest.mark.parametrize(
    ("first", "then", "parts"),
    [
        (STUDENT, {"steps": 2}, 0),
        (STUDENT, {"steps": 1, "substeps": 4}, 0),
        (STUDENT, {"steps": 3}, 6),
        (STUDENT, {"steps": 4}, 8),
        (STUDENT, {"steps": 2, "method": "consistency", "origin": 20}, 20),
        (CONSISTENT, {"steps": 2}, 0),
    ],
)
def test_a_student_that_teaches_goes_the_steps_that_it_was_taught(
    first: Asked, then: dict[str, Any], parts: int, model: Path
) -> None:
    warnings = plan(model, first, ("distill.steps", {**then, "teacher": "0"}), guidance=3.0).warnings
    assert len(warnings) == bool(parts)
    assert all(f"taught 4 steps, and is to go {parts} of them" in one for one in warnings)
    assert plan(model, first, ("distill.steps", {**then, "guidance": 3.0}), guidance=3.0).warnings == ()


@pytest.mark.parametrize(
    ("scheduler", "before", "fix"),
    [
        ("PNDMScheduler", (), "put `- accelerate.steps: {steps: 50, scheduler: ddim}` in front"),
        ("PNDMScheduler", (("accelerate.steps", {"steps": 7}),), "{steps: 7, scheduler: ddim}"),
        ("PNDMScheduler", (CONSISTENT,), "teach with method: progressive"),
        ("DDIMScheduler", (("accelerate.call", {}),), "leave this stage out"),
    ],
)
def test_a_lean_call_is_refused_with_what_would_give_one(
    scheduler: str, before: Sequence[Asked], fix: str, model: Path
) -> None:
    for file, key in ((model / "model_index.json", "scheduler"), (model / "scheduler/scheduler_config.json", "")):
        named = ["diffusers", scheduler] if key else scheduler
        file.write_text(json.dumps({**json.loads(file.read_text()), key or "_class_name": named}))
    asked = ("accelerate.call", {})
    assert fix in refusal(model, *before, asked)
    if "ddim" in fix:
        assert plan(model, *before, ("accelerate.steps", {"steps": 7, "scheduler": "ddim"}), asked).nodes


@pytest.mark.parametrize(
    ("params", "fix"),
    [
        ({"steps": 600}, "ask for at most 1000 parts: fewer `steps`, or fewer `substeps`"),
        ({"steps": 2, "origin": 10}, "leave `origin` out, or set method: consistency"),
        ({"steps": 2, "method": "consistency", "substeps": 2}, "leave `substeps` out"),
        ({"steps": 30, "method": "consistency"}, "ask for 20 steps or fewer, or for a larger `origin`"),
    ],
)
def test_a_refusal_has_a_remedy_of_its_own(params: dict[str, Any], fix: str, model: Path) -> None:
    assert refusal(model, ("distill.steps", params)).endswith(f": {fix}")
