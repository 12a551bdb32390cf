"""Files that Git LFS never fetched are reported as such, wherever they stand, with what fetches them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress
from compress.errors import DataError, ModelError, RecipeError
from compress.files.lfs_pointers import LONGEST, is_pointer
from compress.files.safetensors_headers import read_header
from compress.sources.data import open_data
from compress.sources.models import find_source
from tests.fakes import language_model, pipeline, write_safetensors

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FETCH = "is a pointer of Git LFS: its content was never fetched"


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl", "texts.json", "images/metadata.jsonl", "images/0.png"])
def test_a_pointer_of_git_lfs_among_the_data_is_reported(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a cat"}))
    (tmp_path / name).write_text(POINTER)
    source = tmp_path / name.partition("/")[0]
    with pytest.raises(DataError, match="pointer of Git LFS") as caught:
        open_data(str(source), tmp_path)
    assert caught.value.problems[0].fix == f"git -C {(tmp_path / name).parent} lfs pull"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_in_a_model_is_reported(tmp_path: Path, name: str) -> None:
    model = language_model(tmp_path / "model")
    (model / name).write_text(POINTER)
    (tmp_path / "r.yaml").write_text(f"schema: 1\nname: t\nmodel: {model}\n")
    with pytest.raises(RecipeError) as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    (problem,) = caught.value.problems
    assert problem.message == f"{model / name}: {FETCH}"
    assert problem.fix == f"git -C {model} lfs pull"


@pytest.mark.parametrize("content", [POINTER, "half a file"])
@pytest.mark.parametrize(
    "name",
    [
        "v1-5-pruned-emaonly.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
        ".cache/huggingface/download/x.safetensors",
    ],
)
def test_weights_that_no_library_opens_need_not_have_been_fetched(tmp_path: Path, name: str, content: str) -> None:
    model = pipeline(tmp_path / "model")
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text(content)
    assert find_source(str(model), Path(), None).artifact.components.keys() >= {"unet", "vae"}


def test_only_a_short_file_that_starts_as_one_is_a_pointer(tmp_path: Path) -> None:
    texts = {"pointer": POINTER, "prose": "version of a story", "long": POINTER + "x" * LONGEST}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert [is_pointer(tmp_path / name) for name in (*texts, "absent")] == [True, False, False, False]
    write_safetensors(tmp_path / "whole.safetensors")
    assert read_header(tmp_path / "whole.safetensors").tensors
    with pytest.raises(ModelError, match="pointer of Git LFS"):
        read_header(tmp_path / "pointer")
