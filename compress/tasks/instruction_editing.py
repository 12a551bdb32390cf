"""Instruction editing: a diffusers pipeline that changes an image as an instruction says, and leaves the rest of it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from compress.artifact import Artifact
from compress.errors import Problem
from compress.pipelines.call_arguments import GUIDANCE, MOST_GUIDANCE, TRUE_GUIDANCE, call_faults
from compress.pipelines.image_inputs import IMAGE_GUIDANCE
from compress.pipelines.part_checks import pipeline_problems
from compress.tasks import Task, Usage
from compress.tasks.image_to_image import editing, recognised
from compress.tasks.text_to_image import CALLED, Generating, Judging, evidence, repeats

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


def recognise(path: Path) -> Artifact | Problem | None:
    """A pipeline folder of one of these classes."""
    return recognised(path, KINDS, "instruction_editing")


def usage(usage: Usage) -> tuple[str, ...]:
    return editing(usage, "make it winter", ("image",))


TASK = Task(
    name="instruction_editing",
    title="editing by instruction",
    data="image_edits",
    takes=frozenset({"inputs"}),
    yields=frozenset({"images", "latents", "denoising", "trajectories", "inputs"}),
    settings=Judging,
    baseline=Editing,
    called={**CALLED, "image_guidance": IMAGE_GUIDANCE},
    instead={GUIDANCE: TRUE_GUIDANCE},
    reported=("steps", "guidance", "image_guidance"),
    evidence=evidence,
    repeats=repeats,
    recognise=recognise,
    check=pipeline_problems,
    calls=call_faults,
    libraries=("torch", "transformers", "diffusers"),
    usage=usage,
)
