"""A pipeline whose index and folders disagree is reported when planning: parts that are not there, and parts of another make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.artifact import read_json
from compress.errors import RecipeError
from compress.model.describing import describe
from compress.pipelines.index import INDEX
from compress.pipelines.index_checks import part_problems, sampled_otherwise
from tests.fakes import pipeline, recipe
from tests.families import tiny_image
from tests.tiny import tiny_diffusion


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion(tmp_path_factory.mktemp("sdxl"), xl=True)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "sdxl"))


def reported(folder: Path) -> list[str]:
    return [problem.message for problem in part_problems(describe(folder), read_json(folder / INDEX))]


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**read_json(file), **fields}))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


GONE = {
    "scheduler": "names `scheduler` (DDIMScheduler), and there is no folder scheduler",
    "scheduler/scheduler_config.json": "names `scheduler` (DDIMScheduler), and there is no scheduler/scheduler_config.json",
    "tokenizer_2": "names `tokenizer_2` (CLIPTokenizer), and there is no folder tokenizer_2",
    "text_encoder_2": "names `text_encoder_2` (CLIPTextModelWithProjection), and there is no folder text_encoder_2",
    "vae/config.json": "names `vae` (AutoencoderKL), and there is no vae/config.json",
}


@pytest.mark.parametrize("name", GONE)
def test_a_part_that_is_not_there(name: str, folder: Path) -> None:
    assert reported(folder) == []
    without(name)(folder)
    assert reported(folder) == [GONE[name]]


def test_every_part_that_is_not_there_at_once_and_by_check(folder: Path) -> None:
    without("scheduler")(folder)
    without("tokenizer")(folder)
    (folder.parent / "recipe.yaml").write_text("schema: 1\nname: x\nmodel: ./sdxl\nevaluate: {metrics: [size]}\n")
    with pytest.raises(RecipeError) as caught:
        compress.plan(folder.parent / "recipe.yaml", cache=folder.parent / "cache")
    assert {"there is no folder scheduler", "there is no folder tokenizer"} <= {
        p.message.partition(", and ")[2] for p in caught.value.problems
    }


def test_parts_left_out_or_null_need_no_folder(folder: Path) -> None:
    changed(folder / INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], other=[1, None])
    assert reported(folder) == []


def test_what_a_pipeline_can_do_without_may_be_null(tmp_path: Path) -> None:
    folder = tiny_image(tmp_path, "sd3")
    without("tokenizer_3")(folder)
    (found,) = part_problems(describe(folder), read_json(folder / INDEX))
    assert '"tokenizer_3": [null, null]' in found.fix
    changed(folder / INDEX, tokenizer_3=[None, None])
    assert reported(folder) == []


@pytest.mark.parametrize(
    ("name", "config", "fits"),
    [
        ("text_encoder", {"architectures": ["T5EncoderModel"], "model_type": "t5"}, False),
        ("text_encoder", {"architectures": ["CLIPModel"], "model_type": "clip"}, True),
        ("text_encoder", {"model_type": "clip_text_model"}, True),
        ("text_encoder", {"model_type": "of_another_library"}, True),  # which is not known to be of another family
        ("vae", {"_class_name": "AutoencoderTiny"}, False),
        ("vae", {"_class_name": "FlaxAutoencoderKL"}, True),
        ("unet", {"_class_name": "SD3Transformer2DModel"}, False),
    ],
)
def test_a_part_of_another_make(name: str, config: dict[str, Any], fits: bool, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    changed(folder / name / "config.json", **config)
    assert (reported(folder) == []) == fits


@pytest.mark.parametrize(
    ("kind", "config", "fits"),
    [
        ("T5EncoderModel", {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, True),
        ("T5EncoderModel", {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"}, True),
        ("UMT5EncoderModel", {"architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5"}, True),
        ("Gemma2Model", {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}, True),
        ("CLIPTextModel", {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}, True),
        ("AutoModel", {"architectures": ["BertModel"], "model_type": "bert"}, True),
        ("Gemma2Model", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, False),
        ("T5EncoderModel", {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}, False),
    ],
)
def test_a_text_encoder_as_its_trainers_saved_it(kind: str, config: dict[str, Any], fits: bool, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    changed(folder / INDEX, text_encoder=["transformers", kind])
    changed(folder / "text_encoder" / "config.json", **config)
    assert (reported(folder) == []) == fits


def test_a_transformer_may_have_diffusers_former_name(tmp_path: Path) -> None:
    folder = tiny_image(tmp_path, "pixart-alpha")
    changed(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    assert reported(folder) == []


def test_a_scheduler_with_the_settings_of_another(folder: Path) -> None:
    changed(folder / "scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    (found,) = part_problems(describe(folder), read_json(folder / INDEX))
    assert found.message.startswith("holds the settings of FlowMatchEulerDiscreteScheduler, and model_index.json names")
    changed(folder / INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    assert reported(folder) == []


def test_another_class_of_diffusion_in_the_index_alone_is_meant_and_what_it_drops_is_warned_of(folder: Path) -> None:
    file = folder / "scheduler/scheduler_config.json"
    changed(file, _class_name="PNDMScheduler", skip_prk_steps=True)
    assert reported(folder) == []
    message = sampled_otherwise(describe(folder))
    assert message.startswith(
        "model_index.json names DDIMScheduler, and scheduler/scheduler_config.json holds the settings"
    )
    assert "of which it takes no skip_prk_steps" in message
    assert [*compress.plan(recipe(folder), cache=folder.parent / "cache").warnings] == [message]
    changed(file, skip_prk_steps=False)  # as both classes have it: nothing is dropped
    assert sampled_otherwise(describe(folder)) == ""
    changed(file, _class_name="DDIMScheduler", skip_prk_steps=True)
    assert sampled_otherwise(describe(folder)) == ""
