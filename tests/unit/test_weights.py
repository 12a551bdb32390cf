"""Weights that a loader would not find are reported when planning, from file names and an index alone, with what mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.artifact import Artifact, read_json
from compress.engines.torch.runtime import silent_libraries
from compress.errors import ModelError, PareError
from compress.machine.devices import AS_STORED
from compress.model.describing import ADAPTERS, describe
from compress.model.resave_advice import shown, variant_of, widest
from compress.model.weight_files import weight_problems
from compress.planning.step_checks import source_problems
from tests.fakes import PARTS, language_model, pipeline, write_headers, write_safetensors
from tests.tiny import tiny_diffusion, tiny_llama


def reported(folder: Path) -> list[str]:
    return [f"{p.message} | {p.fix}" for p in weight_problems(describe(folder), "recipe.yaml:3")]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return pipeline(tmp_path / "sd")


def sharded(folder: Path, count: int, stem: str = "model") -> None:
    """Weights in shards with their index, in place of one file."""
    (folder / f"{stem}.safetensors").unlink()
    names = [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for name in names:
        write_safetensors(folder / name)
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def test_weights_that_are_there_are_no_problem(text: Path, generator: Path) -> None:
    assert reported(text) == reported(generator) == []
    sharded(text, 3)
    sharded(generator / "unet", 2, "diffusion_pytorch_model")
    assert reported(text) == reported(generator) == []


@pytest.mark.parametrize("part", PARTS)
def test_a_variant_alone_is_reported_with_the_line_that_saves_it_plainly(
    generator: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(generator.parent.parent)
    stem = PARTS[part][2]
    (generator / part / f"{stem}.safetensors").rename(generator / part / f"{stem}.fp16.safetensors")
    (found,) = reported(generator)
    assert f"`{part}` has weights as variant fp16 alone" in found
    where = f"{generator.parent.name}/sd"
    assert f'from_pretrained("{where}", variant="fp16", dtype=torch.float32).save_pretrained("{where}-plain")' in found
    write_headers(generator / part / f"{stem}.fp16.safetensors", {"w": (2, 3)}, "F16")
    assert f'dtype={{"default": torch.float32, "{part}": torch.float16}}' in reported(generator)[0]


TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def followed(message: str) -> None:
    """Do what a remedy says, as a user would who copies its lines."""
    lines = message.partition("save it anew: ")[2].partition("; copy")[0]
    with silent_libraries():
        exec(lines, {})


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("safe", [True, False])
def test_the_line_gives_a_pipeline_that_opens_and_is_no_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, safe: bool
) -> None:
    from diffusers import DiffusionPipeline

    monkeypatch.chdir(tmp_path)
    whole = DiffusionPipeline.from_pretrained(tiny_diffusion(tmp_path / "made", dtype=dtype), dtype=dtype)
    whole.save_pretrained("models/sd", variant="fp16", safe_serialization=True)
    if not safe:
        pickle(tmp_path / "models/sd")
    found = reported(tmp_path / "models/sd")
    assert len(found) == 3
    followed(found[0])
    plain = tmp_path / "models/sd-plain"
    assert reported(plain) == []
    for part in describe(plain).components:
        assert widest(plain.joinpath(part).glob("*.safetensors")) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("form", ["model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin"])
def test_the_line_gives_a_language_model_that_opens_and_is_no_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_llama(tmp_path / "llama")  # its config says float32
    held = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if form.endswith("bin"):
        torch.save(held, folder / form)
    else:
        save_file(held, folder / form, {"format": "pt"})
    (found,) = reported(folder)
    followed(found)
    assert reported(describe(folder).path.with_name("llama-plain")) == []
    assert widest([tmp_path / "llama-plain/model.safetensors"]) == "float16"


def pickle(folder: Path) -> None:
    """The safetensors below a folder as torch pickles them."""
    for file in folder.rglob("*.safetensors"):
        stem = file.name.removesuffix(".safetensors")
        named = f"pytorch_{stem}" if stem.startswith("model") else stem
        torch.save(load_file(file), file.with_name(f"{named}.bin"))
        file.unlink()


@pytest.mark.parametrize(
    ("file", "stem", "variant"),
    [
        ("model.safetensors", "model", ""),
        ("model-00001-of-00002.safetensors", "model", ""),
        ("model.fp16.safetensors", "model", "fp16"),
        ("model.fp16-00001-of-00002.safetensors", "model", "fp16"),
        ("pytorch_model.bin", "pytorch_model", ""),
        ("pytorch_model.non_ema.bin", "pytorch_model", "non_ema"),
        ("other.fp16.safetensors", "model", ""),
    ],
)
def test_the_variant_in_a_name(file: str, stem: str, variant: str) -> None:
    assert variant_of(file, stem) == variant


def test_a_path_is_named_from_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(Path("a/../b")) == shown(tmp_path / "b") == "b"
    assert shown(Path()) == str(tmp_path)
    assert shown(Path("../b")) == str(tmp_path.parent / "b")


@pytest.mark.parametrize("file", ["tf_model.h5", "consolidated.00.pth", "training_args.bin", "flax_model.msgpack"])
def test_what_no_library_reads_is_not_reported_to_be_loaded(text: Path, file: str) -> None:
    (text / "model.safetensors").rename(text / file)
    (found,) = reported(text)
    assert f"pickled weights alone ({file})" in found
    assert "from_pretrained" not in found


def test_the_shards_of_a_variant_are_that_variant(text: Path) -> None:
    (text / "model.safetensors").rename(text / "model.bf16-00001-of-00001.safetensors")
    (text / "model.safetensors.index.bf16.json").write_text("{}")
    (found,) = reported(text)
    assert "as variant bf16 alone" in found
    assert "AutoModelForCausalLM" in found


@pytest.mark.parametrize("gone", [[2], [1, 3]])
def test_shards_that_the_index_names_and_nobody_fetched(text: Path, gone: list[int]) -> None:
    sharded(text, 3)
    for number in gone:
        (text / f"model-0000{number}-of-00003.safetensors").unlink()
    (found,) = reported(text)
    assert f"lacks {len(gone)} of the 3 files" in found
    assert f"model-0000{gone[0]}-of-00003.safetensors" in found


def test_shards_without_their_index(text: Path) -> None:
    sharded(text, 2)
    (text / "model.safetensors.index.json").unlink()
    (found,) = reported(text)
    assert "no index of shards" in found
    assert "fetch model.safetensors.index.json too" in found


@pytest.mark.parametrize("body", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": 3}', "{"])
def test_an_index_that_names_nothing_is_one_problem(text: Path, body: str) -> None:
    sharded(text, 2)
    (text / "model.safetensors.index.json").write_text(body)
    assert len(reported(text)) == 1


def test_pickled_weights_are_refused_with_the_conversion(text: Path) -> None:
    (text / "model.safetensors").rename(text / "pytorch_model.bin")
    (found,) = reported(text)
    assert "pickled weights alone (pytorch_model.bin)" in found
    assert f'AutoModelForCausalLM.from_pretrained("{text}").save_pretrained("{text}-plain")' in found


def test_pickled_weights_beside_plain_ones_are_nobodys_business(text: Path) -> None:
    (text / "pytorch_model.bin").write_bytes(b"pickle")
    assert reported(text) == []


def test_no_weights_at_all(text: Path, generator: Path) -> None:
    (text / "model.safetensors").unlink()
    (generator / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "the model has no weights" in reported(text)[0]
    assert "`vae` has no weights" in reported(generator)[0]


@pytest.mark.parametrize("file", ADAPTERS)
def test_an_adapter_beside_a_model_is_never_left_out_in_silence(text: Path, generator: Path, file: str) -> None:
    for folder in (text, generator):
        write_safetensors(folder / file)
        (found,) = reported(folder)
        assert f"{file} is an adapter beside the model" in found


def test_an_adapter_by_itself_is_named_with_the_model_it_is_for(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    with pytest.raises(ModelError, match="an adapter for org/base, and no model by itself") as caught:
        describe(tmp_path)
    assert f"write model: BASE and adapter: {tmp_path.name}" in caught.value.problems[0].fix


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_of_diffusers_or_kohya_is_reported_to_be_one(tmp_path: Path, whole: bool) -> None:
    file = write_headers(tmp_path / "pytorch_lora_weights.safetensors", {"unet.to_q.lora_A.weight": (1, 3)})
    with pytest.raises(ModelError, match="is an adapter"):
        describe(tmp_path if whole else file)


def test_of_a_model_whose_weights_are_still_to_be_fetched_nothing_is_message(text: Path) -> None:
    (text / "model.safetensors").unlink()
    artifact: Artifact = describe(text)
    assert list(source_problems(artifact, AS_STORED, "", fetched=False)) == []


RECIPE = "schema: 1\nname: lacking\nmodel: ./llama\nevaluate: {metrics: [size]}\n"
VERBS: dict[str, Callable[[Path], object]] = {
    "plan": lambda folder: compress.plan(folder / "recipe.yaml", cache=folder / "cache"),
    "run": lambda folder: compress.run(folder / "recipe.yaml", cache=folder / "cache", out=folder / "out"),
    "evaluate": lambda folder: compress.evaluate(
        folder / "llama", folder / "llama", metrics=["size"], cache=folder / "cache"
    ),
    "apply": lambda folder: compress.apply("build.openvino", folder / "llama", cache=folder / "cache"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_it(text: Path, tmp_path: Path, verb: str) -> None:
    (text / "model.safetensors").rename(text / "model.fp16.safetensors")
    shutil.copyfile(text / "model.fp16.safetensors", text / "model.bf16.safetensors")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(PareError, match="as the variants bf16, fp16, and nothing says which is meant") as caught:
        VERBS[verb](tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("file", ["", "pytorch_model.bin"])
def test_a_part_that_is_never_opened_may_have_any_weights_or_none(generator: Path, file: str) -> None:
    index = read_json(generator / "model_index.json")
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (generator / "model_index.json").write_text(json.dumps(index))
    (generator / "safety_checker").mkdir()
    (generator / "safety_checker" / "config.json").write_text("{}")
    if file:
        (generator / "safety_checker" / file).write_bytes(b"pickle")
    assert "safety_checker" in describe(generator).components
    assert reported(generator) == []
