"""Few-step students of pipelines that are given images: taught from where their strength begins, beside what they are given, and called so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compress.artifact import Artifact
from compress.catalogue import find_stage, find_task
from compress.data.items import Data, Item
from compress.distillation.few_steps import guiding
from compress.model.describing import describe
from compress.opening import open_images
from compress.opening.text_to_image import TextToImage
from compress.pipelines.call_arguments import STEPS, call_arguments
from compress.pipelines.image_inputs import STRENGTH, steps_run
from compress.pipelines.index import class_of
from compress.sources.data import open_data
from tests.editors import EDITORS, edits, tiny_editor
from tests.stages import apply, forecast

RATES = {"unet": 2e-4, "transformer": 2e-3}  # tiny UNets leap at the first step of a larger one
TAUGHT: dict[str, Any] = {
    "batch": 4,
    "captions": 8,
    "precision": "float32",
    "teacher_steps": 4,
    "warmup": 0,
    "guidance": 3.0,
    "steps": 3,
    "substeps": 4,
}
TWO_OF_THREE = (
    0.67,
    0.66,
)  # strengths, of which each class rounds one so that it leaves two of three steps, and eight of twelve
DAILY = ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", "StableDiffusionInstructPix2PixPipeline")
KINDS = [pytest.param(k, marks=[] if k in DAILY else pytest.mark.slow, id=k.removesuffix("Pipeline")) for k in EDITORS]
Make = Callable[..., Artifact]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    def make(kind: str, **call: Any) -> Artifact:
        found = describe(tiny_editor(tmp_path / "model", kind))
        return found.calling(**call) if call else found

    return make


def data_of(artifact: Artifact, folder: Path, shade: int = 0) -> Data:
    masked = artifact.task == "inpainting"
    return open_data(str(edits(folder, masks=masked, shade=shade)), folder.parent, find_task(artifact.task).data)


def strong(kind: str) -> dict[str, float]:
    """The strength that the steps of both sides begin at, of a pipeline that takes one."""
    if STRENGTH not in (call_arguments(kind) or {}):
        return {}
    return {STRENGTH: next(one for one in TWO_OF_THREE if [steps_run(kind, n, one) for n in (3, 12)] == [2, 8])}


def opened(artifact: Artifact) -> TextToImage:
    return cast("TextToImage", open_images(artifact))


def latents(artifact: Artifact, items: list[Item], steps_of: Artifact, **call: Any) -> NDArray[np.float64]:
    """What is decoded of what a model makes of items, by another's scheduler."""
    task = opened(artifact)
    task.step_with(opened(steps_of).pipeline.scheduler)
    found = task.images(items, 0, **call)[1]
    assert found is not None
    return found.astype(np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_and_comes_nearer_to_its_teacher_in_as_few_steps(
    kind: str, made: Make, tmp_path: Path
) -> None:
    source = made(kind)
    data, items = data_of(source, tmp_path / "train"), data_of(source, tmp_path / "others", shade=1).first(4)
    found: dict[int, tuple[Artifact, float]] = {}
    for updates, rate in ((1, 1e-12), (60, RATES[source.main])):  # the first learns nothing
        options = {**TAUGHT, **strong(kind), "updates": updates, "learning_rate": rate}
        student, notes = apply(
            "distill.steps", source, tmp_path / str(updates), data=data, inputs={"teacher": source}, **options
        )
        found[updates] = student, next(n.facts["last"] for n in notes if "last" in n.facts)
    (untaught, before), (student, after) = found.values()
    assert after < 0.8 * before
    guided = guiding(source).call(TAUGHT["guidance"])
    wanted = latents(source, items, student, num_inference_steps=12, **strong(kind), **guided)
    away = [float(((latents(one, items, student) - wanted) ** 2).mean()) for one in (untaught, student)]
    assert away[1] < 0.9 * away[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_asked_once_a_step_that_its_strength_leaves(kind: str, made: Make, tmp_path: Path) -> None:
    source = made(kind)
    options = {**TAUGHT, **strong(kind), "updates": 1}
    student, _ = apply(
        "distill.steps",
        source,
        tmp_path / "out",
        data=data_of(source, tmp_path / "train"),
        inputs={"teacher": source},
        **options,
    )
    assert student.settings.call[STEPS] == 3
    assert {STRENGTH: student.settings.call.get(STRENGTH)} == (strong(kind) or {STRENGTH: None})
    task, rows = opened(student), list[int]()
    with task.watch(student.main, lambda args, kwargs: rows.append(len((*args, *kwargs.values())[0]))):
        task.generate_items(task.examples[:2], 0)
    assert rows == [2] * (2 if strong(kind) else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_in_the_same_steps(
    kind: str, made: Make, tmp_path: Path
) -> None:
    """So that every latent, mask and image in the recorded calls is where it was."""
    source = made(kind)
    options = {**TAUGHT, **strong(kind), "updates": 1, "substeps": 1, "learning_rate": 1e-12}
    options["guidance"] = 1.0 if guiding(source).folds else None
    _, notes = apply(
        "distill.steps",
        source,
        tmp_path / "out",
        data=data_of(source, tmp_path / "train"),
        inputs={"teacher": source},
        **options,
    )
    assert notes[-1].facts["loss"][0][1] == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- what is recorded


def test_what_noise_is_laid_over_is_the_input(made: Make) -> None:
    """And at the level of noise that the strength says, with the noise that the pipeline draws."""
    source = made("StableDiffusionImg2ImgPipeline", strength=0.5)
    task = opened(source)
    items, call = task.examples[:2], {"guidance_scale": 1.0}
    plain, still = (task.first_step(items, 0, 4, still=quiet, **call) for quiet in (False, True))
    assert (plain.run, plain.laid, still.laid) == (2, True, True)
    scheduler = task.pipeline.scheduler
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[-2])])
    noise = (plain.begun - alpha**0.5 * still.begun) / (1 - alpha) ** 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=0.2)
    assert float(noise.std()) == pytest.approx(1, abs=0.2)
    with torch.no_grad():
        pixels = task.pipeline.image_processor.preprocess(task.given(task.held(items))["image"])
        mean = task.pipeline.vae.encode(pixels).latent_dist
    away = (still.begun / task.pipeline.vae.config.scaling_factor - mean.mean).abs()
    assert (away < 5 * mean.std).all()


def test_latents_of_noise_alone_are_of_no_image(made: Make) -> None:
    task = opened(made("StableDiffusionInstructPix2PixPipeline"))
    first = task.first_step(task.examples[:2], 0, 4, still=True)
    assert not first.laid
    assert first.run == 4
    assert len(first.calls[0]["sample"]) == 6  # with the instruction, with the image alone, without either


def test_a_mask_is_seen_where_the_input_is_laid_over_each_step(made: Make) -> None:
    task = opened(made("StableDiffusion3InpaintPipeline"))
    first = task.first_step(task.examples[:2], 0, task.asking(2, {}), still=True)
    assert first.mask is not None
    assert set(first.mask.unique().tolist()) == {0.0, 1.0}
    assert first.kept is not None
    assert first.kept.shape == first.begun.shape
    assert torch.equal(first.kept, first.begun)  # what a strength begins with is what is kept


def test_a_denoiser_that_is_given_the_mask_keeps_nothing(made: Make) -> None:
    task = opened(made("StableDiffusionInpaintPipeline"))
    first = task.first_step(task.examples[:2], 0, task.asking(2, {}), still=True)
    assert (first.kept, first.mask) == (None, None)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("kind", "call", "options", "message"),
    [
        ("StableDiffusionImg2ImgPipeline", {}, {"steps": 2, "strength": 0.3}, "strength 0.3 leaves none of 2 steps"),
        ("StableDiffusionImg2ImgPipeline", {"strength": 0.2}, {"steps": 2}, "strength 0.2 leaves none of 2 steps"),
        ("StableDiffusionImg2ImgPipeline", {}, {"image_guidance": 1.5}, "takes no image_guidance_scale"),
        ("StableDiffusionInstructPix2PixPipeline", {}, {"strength": 0.5}, "takes no strength"),
        (
            "StableDiffusionInpaintPipeline",
            {"padding_mask_crop": 4},
            {},
            "padding_mask_crop makes it work on each image",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_when_planned(
    kind: str, call: dict[str, Any], options: dict[str, Any], message: str, made: Make
) -> None:
    stage = find_stage("distill.steps")
    why = stage.refuse(made(kind, **call), stage.params(**{**TAUGHT, **options}))
    assert message in why
    assert why.fix  # type: ignore[attr-defined]


def test_a_plan_says_how_the_student_is_called(made: Make) -> None:
    settings = forecast(
        "distill.steps", made("StableDiffusionInpaintPipeline"), steps=4, guidance=3.0, strength=0.5
    ).settings
    assert settings is not None
    assert settings.call == {STEPS: 4, "guidance_scale": 1.0, STRENGTH: 0.5}


def test_the_guidance_by_the_image_is_the_teachers_own_or_what_the_recipe_says(made: Make, tmp_path: Path) -> None:
    source = made("StableDiffusionInstructPix2PixPipeline", image_guidance_scale=2.0)
    assert class_of(source.path) == "StableDiffusionInstructPix2PixPipeline"
    data, said = data_of(source, tmp_path / "train"), []
    for number, options in enumerate(({}, {"image_guidance": 1.25})):
        options = {**TAUGHT, "updates": 1, **options}
        _, notes = apply(
            "distill.guidance" if number else "distill.steps",
            source,
            tmp_path / str(number),
            data=data,
            inputs={"teacher": replace(source)},
            **{k: v for k, v in options.items() if not number or k not in ("steps", "substeps")},
        )
        said.append(notes[-1].message)
    assert said[0].endswith("guidance 3, of the image 2")
    assert said[1].endswith("guidance 3, of the image 1.25")
