"""A config that says another number of layers than there are weights of is reported when planning, and no layout that loads is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import compress
from compress.artifact import read_json
from compress.errors import RecipeError
from compress.model.describing import describe
from compress.model.families import FAMILIES
from compress.model.layer_checks import layer_problems, layers
from compress.zoo import zoo_model
from tests.fakes import language_model, write_headers
from tests.families import TEXT, tiny_image, tiny_text
from tests.tiny import tiny_diffusion

FITTING = ("qwen3", "gpt2", "opt", "gemma3", "bert", "phi3")


def reported(folder: Path) -> list[str]:
    return [problem.message for problem in layer_problems(describe(folder))]


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**read_json(file), **fields}))


@pytest.mark.parametrize("family", FITTING)
def test_a_language_model_of_more_or_fewer_layers(family: str, tmp_path: Path) -> None:
    folder = tiny_text(tmp_path, family)
    assert reported(folder) == []
    (stack,) = FAMILIES[TEXT[family][0]].stacks
    for count, then in ((3, "random"), (1, "left out")):
        changed(folder / "config.json", **{stack.field: count})
        assert reported(folder) == [
            f"the model has weights of 2 layers ({stack.path}), and its config says {count} ({stack.field}): "
            f"the rest would be {then}"
        ]


@pytest.mark.parametrize("family", ["sd3", "pixart-alpha", "sana", "flux"])
def test_so_does_each_stack_of_a_denoiser(family: str, tmp_path: Path) -> None:
    folder = tiny_image(tmp_path, family)
    assert reported(folder) == []
    stacks = FAMILIES[describe(folder).components["transformer"].kind].stacks
    changed(folder / "transformer/config.json", **{stack.field: 3 for stack in stacks})
    found = reported(folder)
    assert len(found) == len(stacks)
    assert all(
        f"({stack.path}), and its config says 3 ({stack.field})" in message
        for stack, message in zip(stacks, found, strict=True)
    )


def test_text_encoders_under_former_names_and_models_of_the_zoo(tmp_path: Path) -> None:
    for folder in (tiny_diffusion(tmp_path, xl=True), zoo_model("docs-llama"), zoo_model("digits-diffusion")):
        assert reported(folder) == []
    names = {f"text_model.encoder.layers.{i}.w": (1,) for i in range(2)} | {"vision_model.encoder.layers.5.w": (1,)}
    write_headers(tmp_path / "model/text_encoder/model.safetensors", names)
    assert reported(tmp_path / "model") == []
    changed(tmp_path / "model/text_encoder/config.json", num_hidden_layers=12)
    (found,) = reported(tmp_path / "model")
    assert "`text_encoder` has weights of 2 layers" in found


NAMES: dict[str, tuple[list[str], str]] = {
    "whole": ([f"model.layers.{i}.w" for i in range(3)], ""),
    "without a head": ([f"layers.{i}.w" for i in range(3)], ""),
    "a gap": (["model.layers.0.w", "model.layers.2.w"], "lacks the weights of layer 1 of model.layers"),
    "other names": (["blocks.0.w"], ""),
}


@pytest.mark.parametrize(("names", "says"), NAMES.values(), ids=NAMES)
def test_what_names_tell(names: list[str], says: str, tmp_path: Path) -> None:
    folder = language_model(tmp_path / "llama")
    changed(folder / "config.json", num_hidden_layers=3)
    write_headers(folder / "model.safetensors", dict.fromkeys(names, (1,)))
    assert bool(reported(folder)) == bool(says)
    assert all(says in found for found in reported(folder))


def test_shards_are_counted_together_and_check_tells(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    shards: dict[str, Any] = {f"model.layers.{i}.w": f"model-{i}.safetensors" for i in range(2)}
    for name, file in shards.items():
        write_headers(folder / file, {name: (1,)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    changed(folder / "config.json", num_hidden_layers=2)
    assert reported(folder) == []
    changed(folder / "config.json", num_hidden_layers=4)
    (tmp_path / "recipe.yaml").write_text("schema: 1\nname: x\nmodel: ./llama\nevaluate: {metrics: [size]}\n")
    with pytest.raises(RecipeError, match=r"weights of 2 layers .* its config says 4") as caught:
        compress.plan(tmp_path / "recipe.yaml", cache=tmp_path / "cache")
    assert "set num_hidden_layers back to 2" in caught.value.problems[0].fix


def test_weights_that_do_not_read_are_reported(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "llama")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    (found,) = reported(folder)
    assert "truncated or broken safetensors" in found


@given(st.sets(st.integers(0, 90), min_size=1), st.sampled_from(["transformer.h", "h", "text_model.transformer.h"]))
def test_layers_are_those_that_were_saved(numbers: set[int], front: str) -> None:
    names = [f"{front}.{number}.ln.weight" for number in numbers]
    assert layers("transformer.h", [*names, "wte.weight", "other.h.99.w", "h.x.w"]) == numbers
