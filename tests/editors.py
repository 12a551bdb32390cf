"""Tiny pipelines that are given images, one of each class that a task takes, and data for them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.artifact import write_manifest
from compress.model.describing import describe
from tests.families import CALLS, IMAGES
from tests.tiny import tiny_diffusion

SIDE = 16
LATENT = 4  # channels of the tiny VAEs' latents, each two pixels wide
NINE, EIGHT = {"unet": {"in_channels": 2 * LATENT + 1}}, {"unet": {"in_channels": 2 * LATENT}}
WIDE = {"in_channels": 16, "out_channels": 16}  # SD3's inpainting wants latents of as many channels as the real one's
FILL = {"transformer": {"in_channels": 4 * (2 * LATENT + 2**2), "out_channels": 4 * LATENT}}
# By class: the family whose parts it has, and what of their configs is otherwise.
EDITORS: Mapping[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    "StableDiffusionImg2ImgPipeline": ("sd", {}),
    "StableDiffusionInpaintPipeline": ("sd", NINE),
    "StableDiffusionInstructPix2PixPipeline": ("sd", EIGHT),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", {}),
    "StableDiffusionXLInpaintPipeline": ("sdxl", NINE),
    "StableDiffusionXLInstructPix2PixPipeline": ("sdxl", EIGHT),
    "StableDiffusion3Img2ImgPipeline": ("sd3-no-t5", {}),
    "StableDiffusion3InpaintPipeline": ("sd3-no-t5", {"transformer": WIDE, "vae": {"latent_channels": 16}}),
    "FluxImg2ImgPipeline": ("flux-deep", {}),
    "FluxInpaintPipeline": ("flux-deep", {}),
    "FluxFillPipeline": ("flux-deep", FILL),
    "FluxKontextPipeline": ("flux-deep", {}),
}
PROMPTS = ("a red three", "blue", "green on paper", "a seven", "the three", "red paper", "white", "an array")


def tiny_editor(folder: Path, kind: str, *, seed: int = 0, **changes: Any) -> Path:
    """A pipeline of a class, made of the tiny parts of its family, with the arguments that make it generate small images.

    Args:
        changes: of the denoiser's config.
    """
    import diffusers

    from compress.engines.torch.runtime import silent_libraries

    family, parts = EDITORS[kind]
    torch.manual_seed(seed)
    with silent_libraries():
        if family in IMAGES:
            base = IMAGES[family](folder / "vocabulary")
        else:
            base = diffusers.DiffusionPipeline.from_pretrained(tiny_diffusion(folder, xl=family == "sdxl"))
        main = "unet" if hasattr(base, "unet") else "transformer"
        every = {name: dict(fields) for name, fields in parts.items()}
        every[main] = {**every.get(main, {}), **changes}
        made = {n: _otherwise(part, every.get(n)) for n, part in base.components.items()}
        known = getattr(diffusers, kind)
        accepted = inspect.signature(known.__init__).parameters
        more = {n: False for n in ("requires_safety_checker", "add_watermarker") if n in accepted}
        known(**{n: part for n, part in made.items() if n in accepted}, **more).save_pretrained(folder / "editor")
    if family in CALLS:
        write_manifest(describe(folder / "editor").calling(**CALLS[family]))
    return folder / "editor"


def _otherwise(part: Any, fields: Mapping[str, Any] | None) -> Any:
    """A part, or where fields of its config are given, another with those."""
    if not fields:
        return part
    own = {name: value for name, value in part.config.items() if not name.startswith("_")}
    return type(part).from_config({**own, **fields})


def edits(folder: Path, *, masks: bool = False, count: int = 8, side: int = SIDE, shade: int = 0) -> Path:
    """A folder of images with what they are made of, others for each shade."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        draw = np.random.default_rng([shade, index])
        coarse = draw.integers(0, 256, (4, 4, 3), np.uint8)
        before = np.kron(coarse, np.ones((side // 4, side // 4, 1), np.uint8))
        mask = np.zeros((side, side), np.uint8)
        mask[side // 4 : side // 4 * 3, index % 4 : side // 2 + index % 4] = 255
        after = np.where(mask[..., None] > 0, 255 - before, before)
        row = {
            "file_name": f"{index}.png",
            "input_file_name": f"{index}-input.png",
            "text": PROMPTS[index % len(PROMPTS)],
        }
        Image.fromarray(after).save(folder / row["file_name"])
        Image.fromarray(before).save(folder / row["input_file_name"])
        if masks:
            row["mask_file_name"] = f"{index}-mask.png"
            Image.fromarray(mask).save(folder / row["mask_file_name"])
        rows.append({**row, "input_text": "a picture", "edited_text": f"a picture, {row['text']}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
