"""A LoRA of the zoo's model, for an ink that no model of the zoo saw: it gives that ink beside packed weights, and after a whole recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.adapters.lora import METADATA
from compress.artifact import LORA_FILE, Artifact
from compress.events import silent
from compress.execution.execute import execute
from compress.files.safetensors_headers import read_header
from compress.machine.devices import AS_STORED, Opening
from compress.opening import open_images
from compress.planning.plan import make_plan
from compress.recipe.reading import read_values
from compress.store.cache import Cache
from compress.zoo import ADAPTERS, new_ink, open_zoo_data
from compress.zoo.digit_classifier import marks

pytest.importorskip("peft")
pytest.importorskip("torchao")

RECIPE = Path(__file__).parents[2] / "recipes/image/lora.yaml"
CALL: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 3.0}
PROMPTS = 32


def inks_right(artifact: Artifact, opening: Opening = AS_STORED, data: str = "zoo://digits-teal/test") -> float:
    items = open_zoo_data(data).first(PROMPTS)
    images = open_images(artifact, opening).images(items, 0, **CALL)[0]
    return float(marks([item.text for item in items], images)[1].mean())


def test_the_new_ink_is_there_with_the_adapter_alone_and_beside_weights_in_8_bits(tmp_path: Path) -> None:
    values = {
        "schema": 1,
        "name": "ink",
        "model": "zoo://digits-diffusion",
        "adapter": {"path": "zoo://digits-teal", "fuse": False},
        "stages": [{"quantize.torchao": {"components": ["unet"]}}],
    }
    (recipe,) = read_values(values, "test")
    store = Cache(tmp_path)
    packed = execute(make_plan(recipe, store), store, silent)[-1].artifact
    assert packed.packed(["unet"]) == ("unet",)
    assert inks_right(packed) > 0.85
    assert inks_right(packed, data="zoo://digits/test") > 0.95
    assert inks_right(packed, Opening(adapters=False)) < 0.3  # of two digits, one may be in an ink that it knows


def test_the_adapter_is_small_and_names_no_place() -> None:
    folder = ADAPTERS / "digits-teal"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 150_000
    assert "base_model_name_or_path" not in read_header(folder / LORA_FILE).metadata[METADATA]


@pytest.mark.slow
def test_the_recipe_passes_its_gate_on_the_new_ink_and_what_it_saves_is_plain(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    found = compress.run(
        RECIPE,
        ["evaluate.metrics.latency=null"],
        cache=tmp_path / "cache",
        out=tmp_path / "out",
        save=tmp_path / "small",
    )
    assert found.status == "pass"
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "small", torch_dtype=torch.bfloat16)
    pipeline.load_lora_weights(tmp_path / "small/adapters/digits_teal")
    items = [new_ink.teal_scene("test", index) for index in range(PROMPTS)]
    images = pipeline(
        [one.caption for one in items], num_inference_steps=20, guidance_scale=3.0, output_type="np"
    ).images
    assert marks([one.caption for one in items], np.round(images * 255).astype(np.uint8))[1].mean() > 0.8
