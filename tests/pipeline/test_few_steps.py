"""Few-step students on tiny pipelines of every family: taught, reopened in plain diffusers, called once a step, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import compress
from compress.artifact import SCHEDULER_CONFIG, Artifact
from compress.catalogue import find_stage
from compress.data.items import Data, Item
from compress.errors import ModelError, Refusal, StageFailed
from compress.files.hashing import digest_files
from compress.model.describing import describe
from compress.opening import open_component
from compress.opening.text_to_image import TextToImage
from compress.recipe.reading import read_recipes
from compress.recipe.values import Recipe
from tests.families import MODELS
from tests.stages import CAPTIONS, apply, forecast

LITTLE: dict[str, Any] = {
    "updates": 2,
    "batch": 2,
    "captions": 6,
    "precision": "float32",
    "teacher_steps": 2,
    "warmup": 0,
    "guidance": 3.0,
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "progressive": ("distill.steps", {"steps": 2}),
    "consistency": ("distill.steps", {"steps": 2, "method": "consistency", "origin": 4}),
    "guidance": ("distill.guidance", {}),
}
OWN_GUIDANCE = ("flux", "flux-deep")  # reported as an input
FLOWS = ("sd3", "sana", *OWN_GUIDANCE)
FEW = ("sd", "sd3")
MANY = ("sdxl", "flux", "pixart-sigma", "sana")


def image(number: int) -> Any:
    return lambda: np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)


IMAGES = Data("images", "texts", "digest", -1, lambda i: Item(str(i), CAPTIONS[i % 3], image(i)))


def source_of(folder: Path, family: str) -> Artifact:
    return describe(MODELS[family](folder))


def taught(source: Artifact, out: Path, method: str = "progressive", **options: Any) -> tuple[Artifact, list[Any]]:
    name, own = METHODS[method]
    teacher = options.pop("teacher", source)
    return apply(name, source, out, inputs={"teacher": teacher}, **{**LITTLE, **own, **options})


def marked(families: tuple[str, ...]) -> list[Any]:
    return [pytest.param(f, marks=pytest.mark.slow) for f in families]


def refused(family: str, method: str) -> bool:
    return (method == "consistency" and family in FLOWS) or (method == "guidance" and family in OWN_GUIDANCE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*FEW, *marked(MANY)])
def test_plain_diffusers_generates_with_a_student_and_asks_it_once_a_step(
    family: str, method: str, tmp_path: Path
) -> None:
    source = source_of(tmp_path / "model", family)
    name, own = METHODS[method]
    if refused(family, method):
        stage = find_stage(name)
        assert stage.refuse(source, stage.params(**{**LITTLE, **own})).count("\n") == 0
        assert stage.refuse(source, stage.params(**{**LITTLE, **own}))
        return
    made, _ = taught(source, tmp_path / "out", method)
    pipeline = DiffusionPipeline.from_pretrained(made.path)
    pipeline.set_progress_bar_config(disable=True)
    rows: list[int] = []
    denoiser = getattr(pipeline, made.main)
    denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(next(v for v in (*args, *kwargs.values()) if torch.is_tensor(v)))),
        with_kwargs=True,
    )
    generators = [torch.Generator().manual_seed(0)]
    call = {"num_inference_steps": 3, **made.settings.call}
    found = pipeline(prompt=["a red three"], generator=generators, output_type="np", **call).images
    assert rows == [1] * call["num_inference_steps"]
    task = TextToImage(made)
    same = task.pipeline(prompt=["a red three"], generator=[torch.Generator().manual_seed(0)], output_type="np", **call)
    np.testing.assert_allclose(found, same.images, atol=1e-5)


@pytest.mark.parametrize("family", [*FEW, *marked(MANY)])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_in_the_same_steps(family: str, tmp_path: Path) -> None:
    """One step of the teacher's is one of the student's, and nothing guides it."""
    source = source_of(tmp_path / "model", family)
    _, notes = taught(source, tmp_path / "out", substeps=1, guidance=None if family in OWN_GUIDANCE else 1.0, updates=1)
    assert notes[-1].facts["loss"][0][1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "updates", "rate"), [("progressive", 20, 5e-3), ("consistency", 60, 2e-3), ("guidance", 20, 5e-3)]
)
def test_a_student_learns_what_it_was_not_shown(method: str, updates: int, rate: float, tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    found = []
    for number in (1, updates):
        _, notes = taught(source, tmp_path / str(number), method, updates=number, learning_rate=rate, captions=12)
        found.append(next(n.facts["last"] for n in notes if "last" in n.facts))
    assert found[1] < 0.8 * found[0]


@pytest.mark.parametrize("family", [*FEW, *marked(MANY)])
def test_latents_are_the_datas_images_where_it_has_some(family: str, tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", family)
    _, notes = taught(source, tmp_path / "images", data=IMAGES)
    _, others = taught(source, tmp_path / "generated", data=IMAGES, latents="teacher")
    assert "the data's images" in notes[-1].message
    assert "what the teacher generates" in others[-1].message


def test_images_that_are_not_there_are_missed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the training data has no images"):
        taught(source_of(tmp_path / "model", "sd"), tmp_path / "out", latents="pictures")


def test_a_round_is_taught_by_the_round_before(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    four, _ = taught(source, tmp_path / "four", steps=4)
    two, notes = taught(four, tmp_path / "two", teacher=four, guidance=None)
    assert two.settings.call == {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert "guidance 1" in notes[-1].message
    assert json.loads((two.path / SCHEDULER_CONFIG).read_text())["timestep_spacing"] == "trailing"


def test_every_step_along_a_flow_takes_its_share_of_the_noise(tmp_path: Path) -> None:
    """Left to itself the scheduler of Stable Diffusion 3 would begin the last of two steps at less than a hundredth of it."""
    source = source_of(tmp_path / "model", "sd3")
    made: dict[int, Artifact] = {}
    for steps, before in ((4, source), (2, 4), (1, 2)):
        given = before if isinstance(before, Artifact) else made[before]
        made[steps], _ = taught(given, tmp_path / f"{steps}", teacher=source, steps=steps, updates=1)
        task = TextToImage(made[steps])
        assert np.isfinite(task.generate_items(task.examples[:1], 0)).all()
        sigmas = task.pipeline.scheduler.sigmas.tolist()
        assert sigmas[0] == 1
        assert sigmas[-2:] == pytest.approx([3 / (steps + 2), 0])  # of 1 / steps, by its shift of 3


def test_a_shortened_student_is_taught_by_the_whole_original(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    cut, _ = apply("prune.depth", source, tmp_path / "cut", ratio=0.25, samples=2)
    made, _ = taught(cut, tmp_path / "out", teacher=source)
    shapes = [{k: v.shape for k, v in open_component(a, "unet").state_dict().items()} for a in (cut, made)]
    assert shapes[0] == shapes[1]


def test_a_teacher_may_predict_something_else(tmp_path: Path) -> None:
    """Each is taken at its own scheduler's word: the teacher's walk is followed, and the student's too."""
    source, other = (source_of(tmp_path / name, "sd") for name in ("model", "other"))
    file = other.path / SCHEDULER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "epsilon"}))
    made, _ = taught(source, tmp_path / "out", teacher=other, updates=1)
    assert json.loads((made.path / SCHEDULER_CONFIG).read_text())["prediction_type"] == "v_prediction"


def test_guidance_is_taught_at_as_many_levels_as_there_are(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    file = source.path / SCHEDULER_CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_train_timesteps": 500}))
    _, notes = taught(source, tmp_path / "out", "guidance", updates=1)
    assert "guidance 3" in notes[-1].message


def test_a_negative_prompt_is_folded_in(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    plain, _ = taught(source, tmp_path / "plain")
    away, _ = taught(source, tmp_path / "away", negative_prompt="blue seven")
    assert away.settings.call == {"num_inference_steps": 2, "guidance_scale": 1.0, "negative_prompt": None}
    assert digest_files(plain.folder("unet")) != digest_files(away.folder("unet"))


def test_what_a_killed_run_recorded_and_learnt_is_kept(tmp_path: Path) -> None:
    """Cut short at its third batch and again at its second update, it ends in the bytes of an undisturbed run."""
    source = source_of(tmp_path / "model", "sd")
    whole, _ = taught(source, tmp_path / "whole", updates=3)
    batches = sorted((tmp_path / "whole-scratch" / "batches").iterdir())
    kept = tmp_path / "again-scratch" / "batches"
    kept.mkdir(parents=True)
    for file in batches[:2]:
        (kept / file.name).write_bytes(file.read_bytes())
    (kept / batches[2].name).write_bytes(batches[2].read_bytes()[:-9])
    again, _ = taught(source, tmp_path / "again", updates=3)
    assert digest_files(whole.path) == digest_files(again.path)


# ---------------------------------------------------------------- recipes for people's own pipelines

OWN = {"sd15": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux1": "flux", "pixart": "pixart-sigma"}
RECIPES = Path(__file__).parents[2] / "recipes" / "image" / "few-steps"


def own_recipe(name: str, folder: Path) -> Recipe:
    """A shipped recipe for a pipeline of one's own, with a tiny one of its class and a few images in its place."""
    for split, first in (("train", 0), ("evaluate", 100)):
        (folder / split).mkdir()
        rows = [{"file_name": f"{n}.png", "text": f"{CAPTIONS[n % 3]} {first + n}"} for n in range(6)]
        for number, row in enumerate(rows):
            Image.fromarray(image(first + number)()).save(folder / split / row["file_name"])
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes: dict[str, Any] = {f"data.{split}": str(folder / split) for split in ("train", "evaluate")}
    changes |= {"model": str(MODELS[OWN[name]](folder / "model")), "evaluate.features": "zoo://digits-clip"}
    few = {"updates": 1, "batch": 2, "accumulate": 1, "captions": 6, "precision": "float32", "warmup": 0}
    changes |= {f"stages.{stage}.{field}": value for stage in (0, 1) for field, value in few.items()}
    changes |= {"evaluate.samples": 4, "evaluate.stage_samples": 0, "evaluate.timing_blocks": 5, "evaluate.batch": 2}
    changes |= {
        "evaluate.metrics": ["clip_score", "lpips", "latency", "flops"],
        "gates.latency": None,
        "evaluate.baseline.steps": 2,
    }
    return read_recipes(RECIPES / f"{name}.yaml")[0].with_(changes)


def test_there_is_a_recipe_for_each_of_the_families() -> None:
    assert {file.stem for file in RECIPES.glob("*.yaml")} == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_for_ones_own_pipeline_is_planned(name: str, tmp_path: Path) -> None:
    found = compress.plan(own_recipe(name, tmp_path), cache=tmp_path / "cache")
    assert [node.stage.name for node in found.nodes] == ["distill.steps", "distill.steps"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "sdxl" else pytest.mark.slow) for n in OWN])
def test_a_recipe_for_ones_own_pipeline_runs(name: str, tmp_path: Path) -> None:
    result = compress.run(own_recipe(name, tmp_path), cache=tmp_path / "cache", out=tmp_path / "out")
    rows = {row.metric: row for row in result.rows}
    assert rows["flops"].candidate is not None


# ---------------------------------------------------------------- refusals and damage


@pytest.mark.parametrize(
    ("family", "method", "options", "message"),
    [
        ("sd", "progressive", {"negative_prompt": "x", "guidance": 1.0}, "nothing leads away"),
        ("sd", "progressive", {"origin": 4}, "`origin` is of method: consistency"),
        ("sd", "consistency", {"substeps": 2}, "leave `substeps` out"),
        ("sd", "consistency", {"steps": 8}, "8 steps are more than the 4"),
        ("sd3", "consistency", {}, "fresh noise"),
        ("flux", "guidance", {}, "one pass a step already"),
        ("flux", "progressive", {"negative_prompt": "x"}, "leads away from nothing"),
    ],
)
def test_what_cannot_be_done_is_refused_when_planned(
    family: str, method: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name, own = METHODS[method]
    stage = find_stage(name)
    why = stage.refuse(source_of(tmp_path / "model", family), stage.params(**{**LITTLE, **own, **options}))
    assert isinstance(why, Refusal)
    assert why.fix
    assert message in f"{why}: {why.fix}"


def test_a_student_that_is_reported_its_guidance_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    planned = replace(source, planned={"unet": {**source.config("unet"), "time_cond_proj_dim": 256}})
    stage = find_stage("distill.steps")
    assert "time_cond_proj_dim" in stage.refuse(planned, stage.params(steps=2))


def test_a_plan_knows_the_students_scheduler_and_call(tmp_path: Path) -> None:
    reported = forecast("distill.steps", source_of(tmp_path / "model", "sd"), steps=2, guidance=3.0)
    assert reported.settings is not None
    assert reported.settings.call == {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert reported.configs["scheduler"]["_class_name"] == "DDIMScheduler"
    assert reported.reported == "2 steps of DDIMScheduler"


def test_a_wrong_prediction_type_shows_when_it_is_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.training.trajectory_targets.prediction_of", lambda config: "epsilon")
    with pytest.raises(ModelError, match="steps in a way that is not known here"):
        taught(source_of(tmp_path / "model", "sd"), tmp_path / "out")


def test_weights_that_are_no_numbers_are_not_taught(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    unet = open_component(source, "unet")
    with torch.no_grad():
        next(unet.parameters()).fill_(float("nan"))
    unet.save_pretrained(source.folder("unet"))
    with pytest.raises((ModelError, StageFailed)):
        taught(source, tmp_path / "out")
