"""Small autoencoders taught on tiny pipelines: plain diffusers loads and calls them, on the latents that they were taught on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.data.items import Data, Item
from compress.model.describing import describe
from compress.opening import open_task
from compress.pipelines.autoencoders import scaling_of
from compress.training.recordings import read_call
from tests.families import MODELS
from tests.stages import CAPTIONS, apply

LITTLE: dict[str, Any] = {
    "steps": 3,
    "prompts": 4,
    "pictures": 4,
    "denoising_steps": 2,
    "batch": 2,
    "precision": "float32",
}
LITTLE |= {"width": 8, "encoder_width": 8, "feature_weight": 0.5}
FAMILIES = [
    "sd",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3", "flux", "pixart-sigma", "sana")),
]


def image(index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image of another shape than any model generates."""
    return np.random.default_rng(index).integers(0, 256, (24, 40, 3), dtype=np.uint8)


SEEN = Data("seen", "captioned_images", "digest", 4, lambda i: Item(str(i), CAPTIONS[i % 3], lambda: image(i)))


def source_of(folder: Path, name: str) -> Artifact:
    return describe(MODELS[name](folder)).calling(num_inference_steps=2)


def taught(source: Artifact, out: Path, **options: Any) -> tuple[Artifact, dict[str, Any]]:
    made, notes = apply("distill.decoder", source, out, data=SEEN, inputs={"teacher": source}, **{**LITTLE, **options})
    return made, dict(notes[-1].facts)


@contextmanager
def handed(vae: Any) -> Iterator[list[torch.Tensor]]:
    """Within: every latent that a VAE is given to decode."""
    recorded: list[torch.Tensor] = []
    real = vae.decode

    def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        recorded.append(latents)
        return real(latents, *args, **kwargs)

    with mock.patch.object(vae, "decode", decode):
        yield recorded


def generated(folder: Path, call: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """What plain diffusers generates of a folder, and the latent that its VAE was given."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    with handed(pipe.vae) as recorded:
        images = pipe(CAPTIONS[0], generator=torch.Generator().manual_seed(0), output_type="np", **call).images
    assert np.isfinite(images).all()
    return (pipe, images.shape), torch.cat(recorded)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_diffusers_hands_it_the_latents_that_it_was_taught_on(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path / "model", name)
    made, facts = taught(source, tmp_path / "out")
    assert facts["images"] == 8
    assert made.components["vae"].kind == "AutoencoderTiny"
    assert made.components.keys() == source.components.keys()
    call = dict(source.settings.call)
    (before, shape), theirs = generated(source.path, call)
    (after, same), ours = generated(made.path, call)
    assert type(after.vae).__name__ == "AutoencoderTiny"
    assert type(after) is type(before)
    assert same == shape
    scaling = scaling_of(source)
    factor, shift = (torch.tensor(n).view(1, -1, 1, 1) for n in (scaling.factor, scaling.shift))
    torch.testing.assert_close(ours * factor + shift, theirs)
    recorded = read_call(tmp_path / "out-scratch/images/generated-000000.safetensors", 0)
    called = next(c for _, c in open_task(made).calls_of(("vae",), [SEEN.read(0)], 0, num_inference_steps=2))
    alone = next(iter(called.values()))[0]
    torch.testing.assert_close(
        recorded["latent"].float(), alone, atol=0.02, rtol=0.02
    )  # generated alone, not four at once


@pytest.mark.parametrize("name", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
def test_the_longer_it_learns_the_nearer_it_comes(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path / "model", name)
    few, many = (
        taught(source, tmp_path / str(n), steps=n, warmup=2, ema=0.5, prompts=32, batch=8, learning_rate=5e-3)[1]
        for n in (2, 80)
    )
    assert many["psnr"] > few["psnr"] + 0.5
    losses = [loss for _, loss in many["loss"]]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.parametrize("name", FAMILIES[:4])
def test_images_are_generated_from_images_and_filled_in(tmp_path: Path, name: str) -> None:
    """The new encoder's latents are those of the pipeline: what the VAE's were, scaled."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    from compress.engines.torch.runtime import silent_libraries

    source = source_of(tmp_path / "model", name)
    made, _ = taught(source, tmp_path / "out")
    call = {"image": torch.rand(1, 3, 16, 16), "strength": 1.0, "num_inference_steps": 2, "output_type": "np"}
    call |= {k: v for k, v in source.settings.call.items() if k == "max_sequence_length"}
    masked = {"mask_image": torch.ones(1, 1, 16, 16), "height": 16, "width": 16}
    kinds = {AutoPipelineForImage2Image: {}, AutoPipelineForInpainting: masked}
    for kind, more in kinds.items():
        if name == "sd3" and more:
            continue  # diffusers fills in with 16 channels alone, and the tiny one has 4
        size = {"height": 16, "width": 16} if name == "flux" else {}
        with silent_libraries():
            pipe = kind.from_pretrained(made.path)
        assert pipe(CAPTIONS[0], **call, **size, **{k: v for k, v in more.items() if k not in size}).images.shape == (
            1,
            16,
            16,
            3,
        )


def test_an_image_and_its_latent_are_those_of_the_vae(tmp_path: Path) -> None:
    """Rows of images that are given hold the VAE's own latents of them, and what it makes of those."""
    source = source_of(tmp_path / "model", "sd")
    taught(source, tmp_path / "out")
    vae: Any = open_task(source).component("vae")
    unit = vae.config.scaling_factor
    row = {
        k: v.float()[None] for k, v in read_call(tmp_path / "out-scratch/images/given-000000.safetensors", 1).items()
    }
    assert row["seen"].shape == (1, 3, 16, 16)
    with torch.no_grad():
        latent = vae.encode(row["seen"]).latent_dist.mode() * unit
        again = vae.decode(row["latent"] / unit).sample.clamp(-1, 1)
    torch.testing.assert_close(row["latent"], latent, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(row["code"][:, :4], row["latent"])
    assert row["code"].shape == (1, 8, 8, 8)  # the deviations behind the means
    torch.testing.assert_close(row["image"], again, atol=1e-2, rtol=1e-2)
    middle = torch.from_numpy(image(1)).permute(2, 0, 1).float() / 127.5 - 1
    assert abs(float(row["seen"].mean() - middle[:, :, 8:32].mean())) < 0.05  # the middle of it, and all of its height


def test_it_is_an_autoencoder_of_the_stored_number_type_without_traces_of_the_old(tmp_path: Path) -> None:
    from tests.tiny import tiny_diffusion

    source = describe(tiny_diffusion(tmp_path / "model", xl=True, dtype=torch.float16)).calling(num_inference_steps=2)
    before = {file: file.read_bytes() for file in source.path.rglob("*") if file.is_file()}
    made, _ = taught(source, tmp_path / "out")
    assert {file: file.read_bytes() for file in source.path.rglob("*") if file.is_file()} == before
    index = json.loads((made.path / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderTiny"]
    config = json.loads((made.folder("vae") / "config.json").read_text())
    assert not {"norm_num_groups", "latents_mean", "down_block_types"} & config.keys()
    assert config["force_upcast"] is False
    pipe: Any = open_task(made).stock
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("name", ["sd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd3", "flux"))])
def test_a_narrowed_vae_learns_again_what_it_was_cut_from(tmp_path: Path, name: str) -> None:
    source = source_of(tmp_path / "model", name)
    cut, _ = apply("prune.width", source, tmp_path / "cut", ratio=0.5, components=("vae",))
    cut = cut.calling(**source.settings.call)
    options = {name: value for name, value in LITTLE.items() if "width" not in name} | {"kind": "own", "batch": 4}
    found = []
    for steps in (1, 60):
        more = {"steps": steps, "prompts": 16, "ema": 0.5, "learning_rate": 3e-3}
        made, notes = apply(
            "distill.decoder", cut, tmp_path / str(steps), data=SEEN, inputs={"teacher": source}, **{**options, **more}
        )
        found.append(notes[-1].facts["psnr"])
    assert found[1] > found[0] + 1
    assert made.components["vae"].kind == "AutoencoderKL"
    assert made.config("vae")["block_out_channels"] == [8, 8]
    generated(made.path, dict(source.settings.call))


def test_a_small_one_teaches_a_smaller_one(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    once, _ = taught(source, tmp_path / "once")
    twice, _ = taught(once.calling(num_inference_steps=2), tmp_path / "twice", width=4, blocks=(1, 0))
    assert twice.config("vae")["num_decoder_blocks"] == [1, 0]
    generated(twice.path, {"num_inference_steps": 2})


@pytest.mark.slow
def test_it_becomes_an_engine_which_plain_pipelines_call(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model", "sd")
    made, _ = taught(source, tmp_path / "out")
    made = replace(made.calling(num_inference_steps=2), planned={})
    built, _ = apply("build.openvino", made, tmp_path / "built", components=("vae",))
    torch_side, engine = (open_task(a).generate_items([SEEN.read(0)], 0) for a in (made, built))  # type: ignore[attr-defined]
    assert np.abs(torch_side.astype(int) - engine.astype(int)).max() <= 1
