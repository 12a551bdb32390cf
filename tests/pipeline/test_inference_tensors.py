"""A model that has generated or written is still a model that can be trained, traced and built: no tensor of it is left in inference mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.artifact import read_json
from compress.model.describing import describe
from compress.opening import open_language, open_task
from tests.families import IMAGES, tiny_image, tiny_text
from tests.stages import DATA, apply
from tests.tiny import tiny_diffusion


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """An SDXL in float16 whose VAE is cast to float32 for each image, which is what diffusers saves by default."""
    folder = tiny_diffusion(tmp_path, xl=True, dtype=torch.float16)
    assert read_json(folder / "vae" / "config.json")["force_upcast"] is True
    return folder


def left_behind(model: torch.nn.Module) -> list[str]:
    """The names of parameters and buffers that no gradient could flow through."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if tensor.is_inference()]


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")
def test_a_vae_that_is_cast_while_it_generates_is_as_it_was(half: Path) -> None:
    task: Any = open_task(describe(half))
    recorded = list(task.calls_of(("vae",), DATA.first(2), 0, num_inference_steps=1))
    vae = task.component("vae")
    assert left_behind(vae) == []
    assert {p.dtype for p in vae.parameters()} == {torch.float16}
    vae.requires_grad_(True)
    assert all(not call["z"].is_inference() for _, call in recorded)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")
def test_an_sdxl_in_half_precision_is_built(half: Path, tmp_path: Path) -> None:
    made, notes = apply("build.openvino", describe(half), tmp_path / "out", components=("vae",))
    assert made.components["vae"].format == "openvino"
    assert [n.facts["relative"] <= n.facts["tolerance"] for n in notes if "tolerance" in n.facts] == [True]


@pytest.mark.parametrize("family", sorted(IMAGES))
def test_no_family_of_pipelines_leaves_one_behind(family: str, tmp_path: Path) -> None:
    artifact = describe(tiny_image(tmp_path, family))
    task: Any = open_task(artifact)
    task.images(DATA.first(1), 0, num_inference_steps=2)
    assert [name for name in artifact.components if left_behind(task.component(name))] == []


@pytest.mark.parametrize("family", ["phi3", "dynamic-rope"])  # whose rotary positions are replaced while a text is read
def test_nor_does_a_language_model(family: str, tmp_path: Path) -> None:
    task = open_language(describe(tiny_text(tmp_path, family)))
    task.logits([[3] * 80, [4] * 20])  # longer than either was trained on
    task.generate([[3] * 20], 4)
    assert left_behind(task.model) == []
