"""Pipelines that are given an image beside the text: which generates from text alone with the same parts, what their denoisers take beside a
latent, and how many steps a strength leaves of those that are asked for. Read from configs and from the source of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import Artifact
from compress.machine.library_classes import source_of
from compress.pipelines.index import class_of

STRENGTH, PASTED = "strength", "padding_mask_crop"
IMAGE_GUIDANCE = "image_guidance_scale"
# By class, the one that generates from text alone with parts of the same make.
TEXT_ALONE: Mapping[str, str] = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline",
    "StableDiffusionInstructPix2PixPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInstructPix2PixPipeline": "StableDiffusionXLPipeline",
    "StableDiffusion3Img2ImgPipeline": "StableDiffusion3Pipeline",
    "StableDiffusion3InpaintPipeline": "StableDiffusion3Pipeline",
    "FluxImg2ImgPipeline": "FluxPipeline",
    "FluxInpaintPipeline": "FluxPipeline",
    "FluxFillPipeline": "FluxPipeline",
    "FluxKontextPipeline": "FluxPipeline",
}
# As pipelines write what a strength leaves: whole steps of it, or all but the whole steps that it leaves out.
WHOLE, REST = "min(int(num_inference_steps * strength)", "min(num_inference_steps * strength"
PACKED = 4  # latents of FLUX and its like in one token, two by two
MOST = 1000  # steps: no schedule has more


def base_of(kind: str) -> str:
    """The class of the pipeline that generates from text alone with parts of the same make as this one's."""
    return TEXT_ALONE.get(kind, kind)


def channels_beside(kind: str, latent: int, pixels: int) -> tuple[int, ...]:
    """The channels that a denoiser may take where it is given more than a latent.

    Args:
        latent: channels of a latent; pixels: that it is wide.
    """
    if "InstructPix2Pix" in kind:
        return (2 * latent,)
    if kind == "FluxFillPipeline":  # the masked image's latent, and a mask of as many pixels as a latent has
        return (PACKED * (2 * latent + pixels**2),)
    return (latent, 2 * latent + 1, PACKED * latent) if "Inpaint" in kind else ()


def steps_run(kind: str, steps: int, strength: float) -> int:
    """How many of so many steps a pipeline of this class runs at a strength."""
    source = source_of(kind, "pipelines") if kind else ""
    if WHOLE in source:
        return min(int(steps * strength), steps)
    if REST in source:
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return steps


def steps_for(kind: str, run: int, strength: float) -> int:
    """How many steps must be asked for, so that at least so many run at a strength."""
    fewest = (n for n in range(run, MOST + 1) if steps_run(kind, n, strength) >= run)
    return next(fewest, MOST)


def strength_of(artifact: Artifact, call: Mapping[str, Any], defaults: Mapping[str, object]) -> float:
    """The strength that a pipeline will be called with; 1 where it has none."""
    found = call.get(STRENGTH, artifact.settings.call.get(STRENGTH, defaults.get(STRENGTH)))
    return float(found) if isinstance(found, int | float) else 1.0


def too_weak(
    artifact: Artifact, call: Mapping[str, Any], defaults: Mapping[str, object], steps: object
) -> Iterator[str]:
    """That a strength leaves no step to run, in words."""
    kind, strength = class_of(artifact.path), strength_of(artifact, call, defaults)
    if isinstance(steps, int) and STRENGTH in defaults and steps_run(kind, steps, strength) < 1:
        yield f"strength {strength:g} leaves none of {steps} steps to run"
