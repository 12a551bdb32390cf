"""Which of the settings that reports tell of mean nothing to a pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.model.describing import describe
from compress.pipelines.unheeded import unheeded
from tests.fakes import language_model, pipeline

PIX = "StableDiffusionInstructPix2PixPipeline"


@pytest.mark.parametrize(
    ("kind", "task", "call", "lost"),
    [
        (PIX, "instruction_editing", {}, ()),
        (PIX, "instruction_editing", {"guidance_scale": 1.0}, ("image_guidance",)),
        (PIX, "instruction_editing", {"guidance_scale": 3.0, "image_guidance_scale": 2.0}, ()),
        ("FluxKontextPipeline", "instruction_editing", {}, ("guidance", "image_guidance")),  # nor has its denoiser an input for guidance
        ("StableDiffusionPipeline", "text_to_image", {"guidance_scale": 1.0}, ()),
        ("StableDiffusionImg2ImgPipeline", "image_to_image", {"guidance_scale": 1.0}, ()),
        ("NoSuchPipeline", "instruction_editing", {}, ()),
    ],
)  # fmt: skip
def test_what_a_pipeline_does_not_have_or_go_by_is_known(
    kind: str, task: str, call: dict[str, Any], lost: tuple[str, ...], tmp_path: Path
) -> None:
    made = pipeline(tmp_path)
    index = json.loads((made / "model_index.json").read_text())
    described = replace(describe(made), task=task)
    (made / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    assert unheeded(described, call) == lost


def test_of_a_language_model_nothing_is_told_anyway(tmp_path: Path) -> None:
    assert unheeded(describe(language_model(tmp_path)), {}) == ()
