"""Inpainting: a diffusers pipeline that inpaints an image where a mask says so, as a prompt says."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from compress.artifact import Artifact
from compress.errors import Problem
from compress.pipelines.call_arguments import GUIDANCE, TRUE_GUIDANCE, call_faults
from compress.pipelines.image_inputs import PASTED, STRENGTH
from compress.pipelines.part_checks import pipeline_problems
from compress.tasks import Task, Usage
from compress.tasks.image_to_image import Changing, editing, recognised
from compress.tasks.text_to_image import CALLED, Judging, evidence, repeats

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


def recognise(path: Path) -> Artifact | Problem | None:
    """A pipeline folder of one of these classes."""
    return recognised(path, KINDS, "inpainting")


def usage(usage: Usage) -> tuple[str, ...]:
    return editing(usage, "a red house by the sea", ("image", "mask_image"))


TASK = Task(
    name="inpainting",
    title="inpainting",
    data="masked_images",
    takes=frozenset({"inputs", "masks"}),
    yields=frozenset({"images", "latents", "denoising", "trajectories", "inputs", "masks"}),
    settings=Judging,
    baseline=Filling,
    called={**CALLED, "strength": STRENGTH, "padding_mask_crop": PASTED},
    instead={GUIDANCE: TRUE_GUIDANCE},
    reported=("steps", "strength", "guidance"),
    evidence=evidence,
    repeats=repeats,
    recognise=recognise,
    check=pipeline_problems,
    calls=call_faults,
    libraries=("torch", "transformers", "diffusers"),
    usage=usage,
)
