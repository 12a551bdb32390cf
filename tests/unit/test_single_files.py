"""A file in place of a model's folder is reported what it is, and what to give instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from compress.errors import ModelError
from compress.model.describing import describe
from compress.model.single_files import ELSE
from tests.fakes import language_model, pipeline, write_headers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reported(file: Path) -> str:
    with pytest.raises(ModelError, match="is one file, and pare opens folders") as caught:
        describe(file)
    return caught.value.problems[0].fix


UNET = "model.diffusion_model.output_blocks.1.0.in_layers.0.weight"
NAMES = {
    (UNET, "first_stage_model.decoder.conv_in.weight"): "StableDiffusionPipeline",
    (UNET, "conditioner.embedders.1.model.ln_final.bias"): "StableDiffusionXLPipeline",
    ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",): "StableDiffusion3Pipeline",
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "lm_head.weight"): "FluxPipeline",
}


@pytest.mark.parametrize(("names", "kind"), NAMES.items(), ids=NAMES.values())
def test_a_whole_pipelines_pickled_checkpoint_is_saved_as_a_folder_by_its_own_class(
    here: Path, names: Sequence[str], kind: str
) -> None:
    file = here / "models/v1.5.ckpt"
    file.parent.mkdir()
    torch.save({"state_dict": {name: torch.zeros(2).half() for name in names}}, file)
    line = f'{kind}.from_single_file("models/v1.5.ckpt", dtype=torch.float16).save_pretrained("models/v1.5")'
    assert reported(file) == f"save it as a folder and give that: import torch; from diffusers import {kind}; {line}"


@pytest.mark.parametrize(("names", "kind"), NAMES.items(), ids=NAMES.values())
def test_one_of_safetensors_wants_a_folder_of_configs_beside_it(here: Path, names: Sequence[str], kind: str) -> None:
    write_headers(here / "v1.5.safetensors", dict.fromkeys(names, (2,)), "F16")
    with pytest.raises(ModelError, match="which holds no configs") as caught:
        describe(here / "v1.5.safetensors")
    assert "behind it, ./v1.5.safetensors::./FOLDER" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("decoder.conv_in.weight", "a VAE"),
        ("first_stage_model.decoder.up.0.block.0.conv1.weight", "a VAE"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        ("body.0.rdb1.conv1.weight", "an upscaler"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
    ],
)
def test_one_part_of_a_pipeline_is_told_what_it_is(here: Path, name: str, what: str) -> None:
    write_headers(here / "x.safetensors", {name: (2, 2)})
    with pytest.raises(ModelError, match=f"is {what}, and no model by itself") as caught:
        describe(here / "x.safetensors")
    assert "one part of a pipeline: give the folder" in caught.value.problems[0].fix


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_a_file_of_a_models_folder_names_the_folder(here: Path, file: str) -> None:
    folder = language_model(here / "lm")
    (folder / file).touch()
    assert reported(folder / file) == "it is part of the model in lm: give that"


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "model_index.json", "whole.safetensors"])
def test_a_file_of_a_pipeline_names_the_pipeline(here: Path, file: str) -> None:
    folder = pipeline(here / "sd")
    write_headers(folder / "whole.safetensors", {UNET: (2,)})
    assert reported(folder / file) == "it is part of the model in sd: give that"


def test_pare_makes_gguf_and_starts_from_torch(here: Path) -> None:
    (here / "x.gguf").write_bytes(b"GGUF")
    assert reported(here / "x.gguf").endswith(
        "build.gguf makes such a file of it: give the model that it was made from"
    )
    folder = language_model(here / "lm")
    (here / "x.gguf").rename(folder / "x.gguf")
    assert reported(folder / "x.gguf").endswith(": give lm")
    (folder / "model.safetensors").unlink()  # a folder of such files alone
    assert reported(folder / "x.gguf").endswith(": give the model that it was made from")


PARTS = {
    "model.embed_tokens.weight": "a language model's weights alone",
    "transformer.wte.weight": "a language model's weights alone",
    "double_blocks.0.img_attn.qkv.weight": "one part of a pipeline",
    "down_blocks.0.resnets.0.conv1.weight": "one part of a pipeline",
}


@pytest.mark.parametrize(("name", "words"), PARTS.items())
def test_weights_by_themselves_are_reported_what_they_lack(here: Path, name: str, words: str) -> None:
    assert words in reported(write_headers(here / "x.safetensors", {name: (2, 2)}))


@pytest.mark.parametrize("file", ["x.safetensors", "x.ckpt", "x.pt", "recipe.yaml", "x"])
@pytest.mark.parametrize("content", [b"", b"w: 1", b"PK\x03\x04", b"\xff" * 100])
def test_whatever_else_a_file_is(here: Path, file: str, content: bytes) -> None:
    (here / file).write_bytes(content)
    assert reported(here / file) == ELSE
