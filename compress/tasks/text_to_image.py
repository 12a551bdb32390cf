"""Text to image: a diffusers pipeline that paints a picture for each caption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compress.artifact import DENOISERS, Artifact
from compress.devices import CPU
from compress.errors import Problem
from compress.params import Params
from compress.pipeline_checks import pipeline_problems
from compress.pipelines import read_pipeline
from compress.tasks import Task, Usage, literal

if TYPE_CHECKING:
    from compress.recipe import EvalSpec

FIX = "give a text-to-image pipeline, such as StableDiffusionPipeline or FluxPipeline"


class Painting(Params):
    """How the baseline paints."""

    steps: int | None = Field(None, ge=1, description="denoising steps; default: the pipeline's own")
    guidance: float | None = Field(
        None, ge=0, description="classifier-free guidance scale, for both sides; default: the pipeline's own"
    )


def recognise(path: Path) -> Artifact | Problem | None:
    """A pipeline folder whose class paints pictures from text alone."""
    found = read_pipeline(path)
    if found is None:
        return None
    if found.paints and not found.takes:
        return Artifact(path, "text_to_image", found.components)
    why = "takes or gives something else" if found.denoiser else f"has no {' or '.join(DENOISERS)} of its own"
    said = f"pare paints pictures from text alone, and {found.kind or 'this pipeline'} {why}"
    return Problem(str(path), said, FIX)


def evidence(spec: EvalSpec) -> Mapping[str, tuple[int, ...]]:
    return {"pictures": ()}


def usage(usage: Usage) -> tuple[str, ...]:
    """Stock diffusers opens a pipeline of torch components alone."""
    opened = "DiffusionPipeline.from_pretrained" if usage.stock else "compress.load"
    moved = f".to({literal(usage.device)})" if usage.stock and usage.device != CPU else ""
    return (
        "from diffusers import DiffusionPipeline" if usage.stock else "import compress",
        f"paint = {opened}({usage.opened}){moved}",
        f'paint({literal(usage.text or "a red house by the sea")}{usage.arguments()}).images[0].save("picture.png")',
    )


TASK = Task(
    name="text_to_image",
    title="text to image",
    data="captioned_images",
    yields=frozenset({"pictures", "latents", "denoising"}),
    baseline=Painting,
    called={"steps": "num_inference_steps", "guidance": "guidance_scale"},
    evidence=evidence,
    recognise=recognise,
    check=pipeline_problems,
    libraries=("torch", "transformers", "diffusers"),
    folders=True,
    usage=usage,
)
