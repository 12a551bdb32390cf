"""Weights of other shapes than their config says are reported when planning, by tensor, shapes and field; no layout that loads is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress
from compress.artifact import read_json
from compress.errors import ModelError, RecipeError
from compress.model.describing import describe
from compress.model.shape_checks import shape_problems
from compress.zoo import zoo_model
from tests.families import IMAGES, TEXT, tiny_image, tiny_text
from tests.tiny import tiny_diffusion, tiny_llama


def reported(folder: Path) -> list[str]:
    return [problem.message for problem in shape_problems(describe(folder))]


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**read_json(file), **fields}))


def test_a_width_is_reported_once_by_the_first_tensor(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    config = read_json(tmp_path / "config.json")
    rows, hidden, inner = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    changed(tmp_path / "config.json", hidden_size=2 * hidden, intermediate_size=inner + 1)
    first, second = reported(tmp_path)
    assert first == (
        f"`model.embed_tokens.weight` is {rows}×{hidden}, and by this config {rows}×{2 * hidden} (hidden_size {2 * hidden})"
    )
    assert second.endswith(f"(intermediate_size {inner + 1})")


@pytest.mark.parametrize("fields", [{"vocab_size": 3}, {"num_key_value_heads": 1, "num_attention_heads": 1}])
def test_so_are_rows_and_heads(fields: dict[str, int], tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    changed(tmp_path / "config.json", head_dim=read_json(tmp_path / "config.json")["head_dim"], **fields)
    assert len(reported(tmp_path)) == len(fields)


def test_check_and_load_refuse_it_with_the_place_of_the_config(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    changed(tmp_path / "model/config.json", hidden_size=96)
    (tmp_path / "r.yaml").write_text("schema: 1\nname: t\nmodel: ./model\nevaluate: {metrics: [size]}\n")
    with pytest.raises(RecipeError, match="hidden_size 96") as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    assert [p.place for p in caught.value.problems] == [str(tmp_path / "model/config.json")]


@pytest.mark.parametrize("family", TEXT)
def test_every_language_model_that_loads_fits(family: str, tmp_path: Path) -> None:
    assert reported(tiny_text(tmp_path, family)) == []


@pytest.mark.parametrize("family", IMAGES)
def test_so_does_every_pipeline(family: str, tmp_path: Path) -> None:
    assert reported(tiny_image(tmp_path, family)) == []


def test_so_do_those_of_the_zoo(tmp_path: Path) -> None:
    for name in ("digits-diffusion", "docs-llama"):
        assert reported(zoo_model(name)) == []


def test_the_parts_of_a_pipeline(tmp_path: Path) -> None:
    folder = tiny_diffusion(tmp_path)
    assert reported(folder) == []
    channels = read_json(folder / "unet/config.json")["block_out_channels"]
    changed(folder / "unet/config.json", in_channels=9, block_out_channels=[2 * channels[0], *channels[1:]])
    first, second = reported(folder)
    assert first.startswith("`conv_in.weight` of `unet` is ")
    assert first.endswith(f"(block_out_channels[0] {2 * channels[0]})")
    assert second.endswith("(in_channels 9)")


def test_a_whole_clip_is_a_text_encoder_too(tmp_path: Path) -> None:
    """diffusers opens its half that reads; the half that sees has widths of its own."""
    from transformers import CLIPConfig, CLIPModel

    folder = tiny_diffusion(tmp_path)
    text = read_json(folder / "text_encoder/config.json")
    seeing = {"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=seeing | {"image_size": 16, "patch_size": 8})).save_pretrained(
        folder / "text_encoder"
    )
    assert reported(folder) == []
    whole = read_json(folder / "text_encoder/config.json")
    changed(folder / "text_encoder/config.json", text_config={**whole["text_config"], "intermediate_size": 7})
    (message,) = reported(folder)
    assert message.startswith("`text_model.")
    assert message.endswith("(intermediate_size 7)")


def test_a_model_that_no_rule_knows_is_reported_by_its_library(tmp_path: Path) -> None:
    from compress.engines.torch.runtime import load_language_model
    from compress.machine.devices import AS_STORED

    tiny_text(tmp_path, "bloom")
    changed(tmp_path / "config.json", hidden_size=64)
    with pytest.raises(
        ModelError, match=r"other shapes than its config says: `.*` is \[.*\], and by its config \["
    ) as caught:
        load_language_model(tmp_path, "BloomForCausalLM", AS_STORED)
    assert caught.value.problems[0].place == str(tmp_path / "config.json")
