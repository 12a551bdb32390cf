"""Inpainting: a diffusers pipeline that inpaints an image where a mask says so, as a prompt says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pydantic import Field

from compress.pipelines.image_inputs import PASTED
from compress.tasks.image_to_image import TASK as GIVEN_IMAGES
from compress.tasks.image_to_image import Changing, editing, recognised

KINDS = (
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3InpaintPipeline",
    "FluxInpaintPipeline",
    "FluxFillPipeline",
)


class Filling(Changing):
    """How the baseline inpaints."""

    padding_mask_crop: int | None = Field(
        None,
        ge=0,
        description="pixels around the mask that are inpainted with it, alone and enlarged, and pasted into the input, which stays as it is "
        "elsewhere, for both sides; default: the whole image is generated, and all of it comes out of the decoder",
    )


TASK = replace(
    GIVEN_IMAGES,
    name="inpainting",
    title="inpainting",
    data="masked_images",
    takes=GIVEN_IMAGES.takes | {"masks"},
    yields=GIVEN_IMAGES.yields | {"masks"},
    baseline=Filling,
    called={**GIVEN_IMAGES.called, "padding_mask_crop": PASTED},
    recognise=partial(recognised, kinds=KINDS, task="inpainting"),
    usage=partial(editing, text="a red house by the sea", images=("image", "mask_image")),
)
