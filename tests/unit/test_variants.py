"""Folders whose weights are a variant alone open as models, through links; what is ambiguous, pickled or lacks an index is refused as before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.errors import PareError
from compress.files.hashing import digest_files
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.opening import open_images, open_language
from compress.planning.step_checks import source_problems
from compress.sources.models import find_source
from compress.sources.variants import opened_of, variants
from tests.tiny import tiny_diffusion, tiny_llama


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def saved_as(kind: Any, plain: Path, folder: Path, **options: object) -> Path:
    """The same model, saved by its own library as a variant."""
    shutil.copytree(plain, folder)
    for file in folder.rglob("*.safetensors*"):
        file.unlink()
    kind.from_pretrained(plain).save_pretrained(folder, **options)
    return folder


def found(folder: Path, cache: Path) -> Any:
    return find_source(str(folder), Path(), cache / "digests")


def test_a_pipeline_of_one_variant_generates_what_the_plain_one_does(pipeline: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    folder = saved_as(DiffusionPipeline, pipeline, tmp_path / "half", variant="fp16")
    assert not list(folder.glob("unet/diffusion_pytorch_model.safetensors"))
    before = digest_files(folder)
    source = found(folder, tmp_path / "cache")
    assert not list(source_problems(source.artifact, AS_STORED, ""))
    items = open_images(describe(pipeline)).examples[:1]
    images = [
        open_images(one).images(items, 0, num_inference_steps=2)[0] for one in (describe(pipeline), source.artifact)
    ]
    assert (images[0] == images[1]).all()
    assert digest_files(folder) == before
    assert found(folder, tmp_path / "cache") == source  # made once


def test_shards_of_a_variant_have_an_index_of_links(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = saved_as(LlamaForCausalLM, llama, tmp_path / "half", variant="bf16", max_shard_size="60KB")
    assert len(list(folder.glob("model.bf16-*.safetensors"))) > 1
    source = found(folder, tmp_path / "cache")
    plain, other = open_language(describe(llama)), open_language(source.artifact)
    assert torch.equal(plain.logits([[5, 6, 7]]), other.logits([[5, 6, 7]]))


def test_a_stage_leaves_files_of_its_own_with_plain_names(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = saved_as(LlamaForCausalLM, llama, tmp_path / "half", variant="fp16")
    text = tmp_path / "texts.txt"
    text.write_text("\n\n".join(f"The {i}th value." for i in range(20)))
    made = compress.apply(
        "prune.depth", str(folder), {"ratio": 0.5, "samples": 2}, calibration=str(text), cache=tmp_path / "cache"
    )
    files = sorted(file for file in made.path.rglob("*") if file.is_file())
    assert [file.name for file in files if "safetensors" in file.name] == ["model.safetensors"]
    assert not any(file.is_symlink() for file in files)


def test_another_content_or_variant_is_another_source(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    one = saved_as(LlamaForCausalLM, llama, tmp_path / "one", variant="fp16")
    other = saved_as(LlamaForCausalLM, llama, tmp_path / "other", variant="bf16")
    keys = {found(folder, tmp_path / "cache").key for folder in (one, other, llama)}
    assert len(keys) == 3
    (one / "model.fp16.safetensors").unlink()
    shutil.copyfile(llama / "model.safetensors", one / "model.safetensors")
    assert found(one, tmp_path / "cache").artifact.path == one


def test_a_moved_folder_gets_links_anew(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = saved_as(LlamaForCausalLM, llama, tmp_path / "here", variant="fp16")
    first = found(folder, tmp_path / "cache").artifact.path
    folder.rename(tmp_path / "there")
    second = found(tmp_path / "there", tmp_path / "cache").artifact.path
    assert first != second
    assert all(file.exists() for file in second.rglob("*"))


def test_two_variants_are_refused_and_plain_weights_win(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(llama, folder)
    for variant in ("fp16", "bf16"):
        shutil.copyfile(llama / "model.safetensors", folder / f"model.{variant}.safetensors")
    assert variants(describe(folder)) == {}
    (folder / "model.safetensors").unlink()
    assert variants(describe(folder)) == {}
    source = found(folder, tmp_path / "cache")
    (problem,) = [one for one in source_problems(source.artifact, AS_STORED, "") if "variant" in one.message]
    assert "save it anew" in problem.fix


def test_a_broken_file_of_a_variant_is_told(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = saved_as(LlamaForCausalLM, llama, tmp_path / "half", variant="fp16")
    file = folder / "model.fp16.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PareError, match="truncated"):
        found(folder, tmp_path / "cache")


def test_of_a_repositorys_files_those_are_wanted_that_are_opened(pipeline: Path) -> None:
    artifact, stem = describe(pipeline), "diffusion_pytorch_model"
    names = [
        f"{part.path}/{file.name}" for part in artifact.components.values() for file in (pipeline / part.path).iterdir()
    ]
    beside = [
        "v1-5-pruned.safetensors",
        f"unet/{stem}.fp16.safetensors",
        f"vae/{stem}.bin",
        "safety_checker/model.safetensors",
    ]
    wanted = {name for name in names if name.endswith(".safetensors")}
    assert set(opened_of([*names, *beside], artifact)) == wanted
    shards = [f"unet/{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    old = [f"unet/{stem}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    of_unet = set(opened_of([*shards, *old], artifact))
    assert of_unet == set(shards)
    assert set(opened_of(old, artifact)) == set(old)
