"""Engines of pipelines that are given images: their VAE's encoder has a graph of its own beside the decoder's, and images come out as torch makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.artifact import Artifact
from compress.catalogue import find_engine
from compress.data.items import Item
from compress.engines import ENCODER, SETTINGS
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_component, open_images
from compress.sources.data import open_data
from tests.editors import edits, tiny_editor
from tests.stages import apply

KINDS = (
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "FluxKontextPipeline",
)
FLOAT32 = Opening("float32")
CALL = {"num_inference_steps": 3, "strength": 1.0}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[Item, ...]:
    folder = tmp_path_factory.mktemp("data")
    return open_data(str(edits(folder / "data", masks=True)), Path(), "masked_images").first(3)


def images(artifact: Artifact, items: tuple[Item, ...]) -> np.ndarray:
    task = open_images(artifact, FLOAT32)
    call = {name: value for name, value in CALL.items() if name in task.takes or name != "strength"}  # type: ignore[attr-defined]
    return task.images(items, 0, **call)[0].astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_of_each_half_makes_the_images_that_torch_makes(
    kind: str, items: tuple[Item, ...], tmp_path: Path
) -> None:
    source = describe(tiny_editor(tmp_path / "model", kind))
    made, recorded = apply("build.openvino", source, tmp_path / "made", components=("vae",))
    assert made.components["vae"].format == "openvino"
    assert (made.folder("vae") / ENCODER / SETTINGS).is_file()
    assert {event.facts["component"] for event in recorded if "relative" in event.facts} == {"vae", "vae's encoder"}
    assert np.abs(images(made, items) - images(source, items)).max() <= 1
    engine = find_engine("openvino")
    assert {file.parent.name for file in engine.reads(made.folder("vae"))} == {"vae", ENCODER}


@pytest.mark.parametrize(
    "stage", ["build.onnxruntime", "export.onnx", pytest.param("build.compiled", marks=pytest.mark.slow)]
)
def test_other_engines_have_both_halves_too(stage: str, items: tuple[Item, ...], tmp_path: Path) -> None:
    source = describe(tiny_editor(tmp_path / "model", KINDS[0]))
    made, _ = apply(stage, source, tmp_path / "made", components=("vae",))
    assert np.abs(images(made, items) - images(source, items)).max() <= 1


def test_eight_bits_reach_both_halves_and_the_quantizer_keeps_the_encoder(
    items: tuple[Item, ...], tmp_path: Path
) -> None:
    source = describe(tiny_editor(tmp_path / "model", KINDS[0]))
    narrow, _ = apply("build.openvino", source, tmp_path / "narrow", components=("vae",), precision="int8_weights")
    plain, _ = apply("build.openvino", source, tmp_path / "plain", components=("vae",))
    later, _ = apply("quantize.nncf", plain, tmp_path / "later", components=("vae",), mode="int8_weights")
    weights = {
        name: made.folder("vae") / ENCODER / "openvino_model.bin"
        for name, made in (("narrow", narrow), ("plain", plain), ("later", later))
    }
    assert weights["narrow"].stat().st_size < 0.6 * weights["plain"].stat().st_size
    assert weights["later"].read_bytes() == weights["plain"].read_bytes()
    assert np.abs(images(later, items) - images(source, items)).mean() < 20


def test_the_fastest_engine_has_both_halves(items: tuple[Item, ...], tmp_path: Path) -> None:
    source = describe(tiny_editor(tmp_path / "model", KINDS[1]))
    made, _ = apply(
        "build.fastest",
        source,
        tmp_path / "made",
        components=("vae",),
        precisions=("float32",),
        engines=("openvino",),
        blocks=4,
    )
    assert np.abs(images(made, items) - images(source, items)).max() <= 1


def test_an_engine_of_text_to_image_encodes_nothing_and_says_so(tmp_path: Path) -> None:
    import torch

    from tests.tiny import tiny_diffusion

    source = describe(tiny_diffusion(tmp_path / "model"))
    made, _ = apply("build.openvino", source, tmp_path / "made", components=("vae",))
    assert not (made.folder("vae") / ENCODER).exists()
    with pytest.raises(AttributeError, match="has no method encode"):
        open_component(made, "vae", FLOAT32).encode(torch.zeros(1, 3, 64, 64))  # type: ignore[operator]
