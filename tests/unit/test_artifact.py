"""What a folder holds, read from its JSON alone; and where it is no model, one clear error."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest

from compress.artifact import (
    Artifact,
    Component,
    Provenance,
    Quantization,
    Setting,
    Settings,
    derive,
    rewritten,
    write_manifest,
)
from compress.errors import ModelError, UserError
from compress.model.describing import describe
from compress.opening import open_task
from compress.sources.models import check_safetensors, find_source
from tests.fakes import pipeline


def llama(folder: Path, kind: str = "LlamaForCausalLM") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [kind]}))
    return folder


def safetensors(path: Path, cut: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(24)
    path.write_bytes(data[: len(data) - cut])


def test_a_language_model_is_one_component_at_the_root(tmp_path: Path) -> None:
    found = describe(llama(tmp_path / "m"))
    assert found.task == "text_generation"
    assert found.main == "model"
    assert found.folder("model") == tmp_path / "m"


def test_a_pipeline_has_the_components_that_carry_weights(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None]}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = describe(tmp_path)
    assert set(found.components) == {"unet"}
    assert found.main == "unet"


@pytest.mark.parametrize(
    "content", [None, {}, {"config.json": "{"}, {"config.json": '{"architectures": ["ViTModel"]}'}]
)
def test_a_folder_that_is_no_model_is_one_clear_error(tmp_path: Path, content: dict[str, str] | None) -> None:
    folder = tmp_path / "m"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(ModelError) as caught:
        describe(folder)
    problem = caught.value.problems[0]
    assert str(folder) in problem.place
    assert problem.fix


def test_a_folder_of_models_names_them(tmp_path: Path) -> None:
    llama(tmp_path / "small")
    llama(tmp_path / "large")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ModelError, match=f"give {tmp_path}/large or {tmp_path}/small, which it holds"):
        describe(tmp_path)


def test_a_manifest_round_trips_and_holds_no_path(tmp_path: Path) -> None:
    parts = {"model": Component("openvino", "", "LlamaForCausalLM")}
    lineage = (Provenance("build.openvino", 1, {"precision": "float32"}, "k"),)
    made = Artifact(tmp_path, "text_generation", parts, Settings({"num_beams": 1}), lineage)
    write_manifest(made)
    assert describe(tmp_path) == made
    assert str(tmp_path) not in (tmp_path / "pare.json").read_text()


def test_a_manifest_from_the_future_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pare.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ModelError, match="99"):
        describe(tmp_path)


WHOLE = {
    "schema": 1,
    "task": "text_generation",
    "components": {"model": {"format": "torch", "path": "", "kind": "LlamaForCausalLM"}},
    "settings": {"call": {}, "needs_pare": False},
    "lineage": [],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "its task None is none"),
        ({"task": ["text_generation"]}, "is none that this pare knows"),
        ({"components": []}, "AttributeError"),
        ({"components": {"model": {"format": "torch"}}}, "missing 2 required"),
        ({"components": {"model": {"format": "torch", "path": "", "kind": "X", "colour": "red"}}}, "colour"),
        ({"components": {"model": {"format": "torch", "path": "../..", "kind": "X"}}}, "lies outside the folder"),
        ({"components": {"model": {"format": "torch", "path": "/etc", "kind": "X"}}}, "lies outside the folder"),
        ({"settings": {"call": {}, "speed": 3}}, "speed"),
        ({"settings": None}, "AttributeError"),
        ({"lineage": [{"stage": "prune.depth"}]}, "missing"),
        ({"lineage": None}, "TypeError"),
    ],
)
def test_a_nonfinite_manifest_is_one_clear_error(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "pare.json"
    file.write_text(json.dumps(WHOLE))
    assert describe(tmp_path).main == "model"
    file.write_text(json.dumps({**WHOLE, **change}))
    with pytest.raises(ModelError) as caught:
        describe(tmp_path)
    (problem,) = caught.value.problems
    assert (problem.place, message in problem.message, bool(problem.fix)) == (str(file), True, True)


@pytest.mark.parametrize("name", ["config.json", "model_index.json", "pare.json"])
@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "[" * 100_000])
def test_json_that_holds_no_object_is_one_clear_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError) as caught:
        describe(tmp_path)
    assert caught.value.problems[0].place == str(tmp_path / name)


@pytest.mark.parametrize("named", [{"a": 1}, "LlamaForCausalLM", 3, [], [None]])
def test_architectures_that_are_no_list_of_names_name_no_class(tmp_path: Path, named: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": named}))
    with pytest.raises(ModelError, match=r"this is (of an unnamed class|None)"):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "scheduler"])
def test_one_part_of_a_pipeline_names_the_whole(name: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "sd")
    with pytest.raises(ModelError, match="one part of a pipeline") as caught:
        describe(folder / name)
    assert caught.value.problems[0].fix == f"give the pipeline's folder: {folder}"
    with contextlib.chdir(folder / name), pytest.raises(ModelError, match="one part of a pipeline"):
        describe(Path())


def test_a_denoiser_by_itself_is_reported_as_a_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ModelError, match="this is SD3Transformer2DModel alone, one part of a pipeline") as caught:
        describe(tmp_path)
    assert "model_index.json" in caught.value.problems[0].fix


def test_derive_links_unchanged_files_and_leaves_out_the_named(tmp_path: Path) -> None:
    source = describe(llama(tmp_path / "a"))
    (source.path / "model.safetensors").write_bytes(b"1")
    (source.path / "unet").mkdir()
    (source.path / "unet" / "x.bin").write_bytes(b"2")
    (source.path / ".entry.json").write_text("the cache's own")
    out = tmp_path / "b"
    made = derive(source, out, without=("unet",))
    assert made.path == out
    assert os.stat(out / "model.safetensors").st_ino == os.stat(source.path / "model.safetensors").st_ino
    assert not (out / "unet").exists()
    assert not (out / ".entry.json").exists()


COPIES = ("tf_model.h5", "pytorch_model.bin", "pytorch_model.bin.index.json", "onnx/model.onnx", "onnx/model.onnx_data")
COPIES += (
    "openvino_model.xml",
    "openvino_model.bin",
    "model-q4.gguf",
    "original/consolidated.00.pth",
    "model.onnx.data",
)
STAYING = ("tokenizer.json", "tokenizer.model", "openvino_tokenizer.bin", "LICENSE", "vocab.txt", "preprocessor.xml")


def test_what_a_change_of_weights_makes_untrue_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    folder = llama(tmp_path / "a")
    for name in (*COPIES, *STAYING, "model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    gone = {Path(name).as_posix() for name in rewritten(describe(folder), ("model",))}
    assert gone == {*COPIES, "model.safetensors", "config.json", "generation_config.json"}


def test_of_a_pipeline_the_other_parts_stay(tmp_path: Path) -> None:
    folder = pipeline(tmp_path)
    for name in ("whole.safetensors", "unet/model.onnx", "vae/model.onnx", "vae/tf_model.h5"):
        (folder / name).write_bytes(b"")
    gone = {Path(name).as_posix() for name in rewritten(describe(folder), ("unet",))}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert gone == {"whole.safetensors", "unet/model.onnx", weights, "unet/config.json"}


def test_derive_from_a_users_folder_copies(tmp_path: Path) -> None:
    source = describe(llama(tmp_path / "a"))
    derive(source, tmp_path / "b", link=False)
    assert os.stat(tmp_path / "b" / "config.json").st_ino != os.stat(source.path / "config.json").st_ino


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    safetensors(tmp_path / "w.safetensors")
    assert check_safetensors(tmp_path / "w.safetensors") == 6


@pytest.mark.parametrize("cut", [1, 23, 30, 80])
def test_truncated_safetensors_are_found_before_anything_runs(tmp_path: Path, cut: int) -> None:
    folder = llama(tmp_path / "m")
    safetensors(folder / "model.safetensors", cut)
    with pytest.raises(ModelError, match="truncated"):
        find_source(str(folder), Path(), None)


@pytest.mark.parametrize("reference", ["hf://org/name", "hf://org/name@main", "hf://name", "hf://org/name@" + "a" * 39])
def test_a_floating_hub_revision_is_refused(reference: str) -> None:
    with pytest.raises(ModelError, match="not pinned"):
        find_source(reference, Path(), None)


def test_an_unknown_zoo_model_names_the_near_match() -> None:
    with pytest.raises(ModelError) as caught:
        find_source("zoo://docs-lama", Path(), None)
    assert "docs-llama" in caught.value.problems[0].fix


def test_the_source_key_follows_the_content(tmp_path: Path) -> None:
    folder, memory = llama(tmp_path / "m"), tmp_path / "memory"
    safetensors(folder / "model.safetensors")
    first = find_source(str(folder), Path(), memory).key
    assert find_source(str(folder), Path(), memory).key == first
    assert find_source(str(folder), Path(), None).key == first
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "x": 1}))
    assert find_source(str(folder), Path(), memory).key != first


# ---------------------------------------------------------------- packed weights and settings


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}


@pytest.mark.parametrize(
    ("message", "packed"),
    [
        (GPTQ, Quantization("gptq", 4, "gptqmodel")),
        (NF4, Quantization("bitsandbytes", 4, "bitsandbytes")),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization("bitsandbytes", 8, "bitsandbytes")),
        ({"quant_method": "compressed-tensors"}, Quantization("compressed-tensors", 0, "compressed-tensors")),
        ({}, Quantization("unnamed", 0, "")),
        (None, None),
        ("gptq", None),
    ],
)
def test_how_weights_are_packed_is_read_off_the_config(
    tmp_path: Path, message: object, packed: Quantization | None
) -> None:
    config = json.loads((llama(tmp_path / "m") / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "quantization_config": message}))
    found = describe(tmp_path / "m")
    assert found.components["model"].quantization == packed
    assert found.packed(found.components) == (("model",) if packed else ())


def test_a_manifest_says_only_what_is_not_the_default(tmp_path: Path) -> None:
    artifact = Artifact(llama(tmp_path / "m"), "text_generation", {"model": Component("torch", "", "LlamaForCausalLM")})
    write_manifest(artifact)
    message = json.loads((tmp_path / "m" / "pare.json").read_text())
    assert message["components"]["model"] == {"format": "torch", "path": "", "kind": "LlamaForCausalLM"}
    assert message["settings"] == {"call": {}, "needs_pare": False}


def test_a_manifest_keeps_packing_modules_and_settings_of_every_level(tmp_path: Path) -> None:
    part = Component("torch", "", "LlamaForCausalLM", "decoder", Quantization("nf4", 4, "bitsandbytes"))
    hook = Setting("first_block_cache", "model", {"threshold": 0.1})
    settings = Settings({"eta": 0.5}, True, (Setting("attention", "model", {"backend": "native"}),), (hook,))
    artifact = Artifact(llama(tmp_path / "m"), "text_generation", {"model": part}, settings)
    write_manifest(artifact)
    assert describe(tmp_path / "m") == artifact


def test_a_task_that_this_pare_does_not_know_is_named(tmp_path: Path) -> None:
    write_manifest(Artifact(llama(tmp_path / "m"), "text_to_smell", {}))
    with pytest.raises(ModelError, match="its task text_to_smell is none that this pare knows"):
        describe(tmp_path / "m")


def test_what_is_hooked_and_cannot_be_is_never_left_out_in_silence(tmp_path: Path) -> None:
    part = {"model": Component("torch", "", "LlamaForCausalLM")}
    hooked = Settings(hook=(Setting("first_block_cache", "model"),))
    with pytest.raises(UserError, match="meant to run with first_block_cache, which this pare does not apply"):
        open_task(Artifact(tmp_path, "text_generation", part, hooked))


def test_packing_says_how_some_components_are_packed_and_leaves_the_others(tmp_path: Path) -> None:
    one, other = Quantization("gptq", 4, "gptqmodel"), Quantization("awq", 4, "gptqmodel")
    parts = {"unet": Component("torch", "unet", "UNet"), "vae": Component("torch", "vae", "VAE", "", one)}
    before = Artifact(tmp_path, "text_to_image", parts)
    assert before.packed(before.components) == ("vae",)
    packed = before.packing({"unet": other})
    assert {name: part.quantization for name, part in packed.components.items()} == {"unet": other, "vae": one}
    assert packed.packing({}) == packed
