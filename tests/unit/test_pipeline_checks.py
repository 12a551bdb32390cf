"""Parts of a pipeline that do not fit each other are reported when planning, and no model that works is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.artifact import Artifact, read_json
from compress.errors import RecipeError
from compress.machine.library_classes import has_class
from compress.model.describing import describe
from compress.pipelines.part_checks import POOLED, READS, pipeline_problems
from compress.zoo import zoo_model
from tests.fakes import PARTS, pipeline
from tests.families import IMAGES, tiny_image
from tests.tiny import tiny_diffusion

CLASSES = {
    "UNet2DConditionModel": "diffusers",
    "AutoencoderKL": "diffusers",
    "CLIPTextModelWithProjection": "transformers",
}


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """A pipeline whose parts fit."""
    folder = pipeline(tmp_path / "sd")
    configs = {"unet": {"in_channels": 4, "cross_attention_dim": 32}, "vae": {"latent_channels": 4}}
    configs |= {"text_encoder": {"hidden_size": 32, "model_type": "clip_text_model"}}
    for name, config in configs.items():
        write(folder / name / "config.json", config)
    write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    return folder


def write(file: Path, value: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def changed(file: Path, **fields: object) -> None:
    write(file, {**read_json(file), **fields})


def reported(folder: Path) -> list[str]:
    return [problem.message for problem in pipeline_problems(describe(folder))]


def test_parts_that_fit_are_no_problem(generator: Path) -> None:
    assert reported(generator) == []


@pytest.mark.parametrize("family", IMAGES)
def test_no_family_that_pare_generates_with_is_refused(family: str, tmp_path: Path) -> None:
    assert reported(tiny_image(tmp_path, family)) == []


def test_nor_is_the_zoos_or_a_stable_diffusion(tmp_path: Path) -> None:
    found: list[Artifact] = [describe(zoo_model("digits-diffusion")), describe(tiny_diffusion(tmp_path))]
    found.append(describe(tiny_diffusion(tmp_path / "xl", xl=True)))
    assert [list(pipeline_problems(artifact)) for artifact in found] == [[], [], []]


@pytest.mark.parametrize(
    ("channels", "hint"), [(9, "given an image beside"), (8, "given an image"), (5, "different models")]
)
def test_a_denoiser_of_other_channels_than_the_vae(generator: Path, channels: int, hint: str) -> None:
    changed(generator / "unet" / "config.json", in_channels=channels)
    (found,) = pipeline_problems(describe(generator))
    assert (
        found.message
        == f"`unet` takes {channels} channels (in_channels), and the VAE makes latents of 4 (latent_channels)"
    )
    assert hint in found.fix


@pytest.mark.parametrize(("field", "channels"), [("in_channels", 16), ("out_channels", 16), ("out_channels", 5)])
def test_no_unet_lays_latents_two_by_two(generator: Path, field: str, channels: int) -> None:
    changed(generator / "unet" / "config.json", **{field: channels})
    (found,) = reported(generator)
    assert f"{channels} channels ({field})" in found


def test_a_denoiser_may_say_how_sure_it_is(generator: Path) -> None:
    changed(generator / "unet" / "config.json", out_channels=8)
    assert reported(generator) == []


@pytest.mark.parametrize(("family", "part", "field", "wrong", "message"), [
    ("sdxl", "unet", "projection_class_embeddings_input_dim", 64, "reads texts 16 wide (projection_class_embeddings_input_dim)"),
    ("sdxl", "unet", "cross_attention_dim", 32, "text_encoder and text_encoder_2 write 32 + 32"),
    ("sd3", "transformer", "pooled_projection_dim", 32, "text_encoder and text_encoder_2 write 32 + 32"),
    ("sd3", "transformer", "joint_attention_dim", 32, "text_encoder_3 write 64"),
    ("flux", "transformer", "pooled_projection_dim", 64, "text_encoder write 32"),
    ("flux", "transformer", "in_channels", 64, "takes 64 channels"),
    ("sana", "transformer", "caption_channels", 64, "text_encoder write 32"),
])  # fmt: skip
def test_each_width_that_families_share_is_held_against_its_encoders(
    family: str, part: str, field: str, wrong: int, message: str, tmp_path: Path
) -> None:
    folder = tiny_diffusion(tmp_path, xl=True) if family == "sdxl" else tiny_image(tmp_path, family)
    changed(folder / part / "config.json", **{field: wrong})
    (found,) = reported(folder)
    assert message in found


def test_a_text_encoder_of_another_width(generator: Path) -> None:
    changed(generator / "text_encoder" / "config.json", hidden_size=64)
    assert reported(generator) == ["`unet` reads texts 32 wide (cross_attention_dim), and text_encoder write 64"]
    changed(generator / "unet" / "config.json", encoder_hid_dim=64)  # a projection of the denoiser's own
    assert reported(generator) == []


@pytest.mark.parametrize("kind", [*READS, *POOLED])
def test_every_class_of_the_table_is_one_of_diffusers(kind: str) -> None:
    assert has_class(kind, "diffusers")


@pytest.mark.parametrize(("kind", "message"), [
    ("SomethingUnknown", "diffusers has no pipeline SomethingUnknown"),
    (["my_pipe", "MyPipeline"], "the pipeline is Python code of its own (my_pipe.MyPipeline)"),
])  # fmt: skip
def test_a_pipeline_of_an_unknown_class(generator: Path, kind: object, message: str) -> None:
    changed(generator / "model_index.json", _class_name=kind)
    assert reported(generator) == [message]


@pytest.mark.parametrize(("entry", "message"), [
    (["my_unet", "MyUNet"], "`unet` is of a class my_unet.MyUNet, which is Python code of its own"),
    (["diffusers", "UNet9D"], "`unet` is of a class diffusers.UNet9D, which diffusers does not have"),
])  # fmt: skip
def test_a_component_of_an_unknown_class(generator: Path, entry: list[str], message: str) -> None:
    changed(generator / "model_index.json", unet=entry)
    assert reported(generator) == [message]


@pytest.mark.parametrize(("kind", "library"), [*CLASSES.items(), *((k, lib) for lib, k, _ in PARTS.values())])
def test_classes_are_found_in_the_libraries_source(kind: str, library: str) -> None:
    assert has_class(kind, library, "clip_text_model")
    assert not has_class(kind + "X", library)


def test_a_class_that_pipelines_bring_is_looked_up_among_them() -> None:
    assert has_class("StableDiffusionSafetyChecker", "stable_diffusion")
    assert not has_class("StableDiffusionSafetyChecker", "no_such_pipelines")


def test_a_schedule_that_ends_in_noise_alone_needs_velocity(generator: Path) -> None:
    file = generator / "scheduler" / "scheduler_config.json"
    changed(file, rescale_betas_zero_snr=True, prediction_type="epsilon", timestep_spacing="trailing")
    (found,) = reported(generator)
    assert "divides by zero" in found
    changed(file, prediction_type="v_prediction")
    assert reported(generator) == []


def test_a_plan_tells_all_of_it_at_once(generator: Path, tmp_path: Path) -> None:
    changed(generator / "unet" / "config.json", in_channels=9)
    changed(generator / "model_index.json", vae=["diffusers", "NoVAE"])
    (generator / "text_encoder" / "model.safetensors").unlink()
    (tmp_path / "recipe.yaml").write_text("schema: 1\nname: x\nmodel: ./sd\nevaluate: {metrics: [size]}\n")
    with pytest.raises(RecipeError) as caught:
        compress.plan(tmp_path / "recipe.yaml", cache=tmp_path / "cache")
    message = "\n".join(problem.message for problem in caught.value.problems)
    assert "no weights" in message
    assert "takes 9 channels" in message
    assert "NoVAE" in message
