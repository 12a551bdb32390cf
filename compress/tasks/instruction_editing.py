"""Instruction editing: a diffusers pipeline that changes an image as an instruction says, and leaves the rest of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pydantic import Field

from compress.pipelines.call_arguments import MOST_GUIDANCE
from compress.pipelines.image_inputs import IMAGE_GUIDANCE
from compress.tasks.image_to_image import TASK as GIVEN_IMAGES
from compress.tasks.image_to_image import editing, recognised
from compress.tasks.text_to_image import CALLED, Generating

KINDS = (
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "FluxKontextPipeline",
)


class Editing(Generating):
    """How the baseline edits."""

    image_guidance: float | None = Field(
        None,
        ge=1,  # below it pipelines are not guided at all, by the text either
        le=MOST_GUIDANCE,
        description="guidance scale of the input image, for both sides: a greater one stays nearer to it; default: the pipeline's own",
    )


TASK = replace(
    GIVEN_IMAGES,
    name="instruction_editing",
    title="editing by instruction",
    baseline=Editing,
    called={**CALLED, "image_guidance": IMAGE_GUIDANCE},
    reported=("steps", "guidance", "image_guidance"),
    recognise=partial(recognised, kinds=KINDS, task="instruction_editing"),
    usage=partial(editing, text="make it winter", images=("image",)),
)
