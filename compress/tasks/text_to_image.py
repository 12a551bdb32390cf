"""Text to image: a diffusers pipeline that generates an image for each caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compress.artifact import DENOISERS, LORA_FILE, SCHEDULER, SCHEDULER_CONFIG, Artifact, read_json
from compress.errors import Problem
from compress.machine.devices import CPU
from compress.params import Params, Shared
from compress.pipelines.call_arguments import GUIDANCE, MOST_GUIDANCE, TRUE_GUIDANCE, call_faults
from compress.pipelines.image_sizes import BINNED, unbinned
from compress.pipelines.index import read_pipeline
from compress.pipelines.part_checks import pipeline_problems
from compress.pipelines.schedulers import Named, changes
from compress.tasks import Task, Usage, literal

if TYPE_CHECKING:
    from compress.recipe.values import EvalSpec

FIX = "give a text-to-image pipeline, such as StableDiffusionPipeline or FluxPipeline, or one that is given images, such as StableDiffusionInpaintPipeline"


CALLED: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "scheduler": SCHEDULER,
}


class Judging(Params):
    """What the images of a run are judged by."""

    features: Annotated[str, Shared()] = Field(
        "",
        description="feature extractor of every metric that has one and does not name its own; empty: the metric's default",
    )
    reference: Annotated[str, Shared()] = Field(
        "",
        description="real set of every metric that has one and does not name its own; empty: the items' own images",
    )
    images_per_prompt: int = Field(
        1,
        ge=1,
        le=1000,
        description="images of each prompt, each from noise of its own; the prompt stays the unit that n counts",
    )


class Generating(Params):
    """How the baseline generates."""

    steps: int | None = Field(None, ge=1, description="denoising steps; default: the pipeline's own")
    guidance: float | None = Field(
        None,
        ge=0,
        le=MOST_GUIDANCE,
        description="classifier-free guidance scale, for both sides; default: the pipeline's own",
    )
    negative_prompt: str | None = Field(
        None, min_length=1, description="what guidance leads away from, the same for every prompt, for both sides"
    )
    height: int | None = Field(None, ge=1, description="pixels, for both sides; default: the pipeline's own")
    width: int | None = Field(None, ge=1, description="pixels, for both sides; default: the pipeline's own")
    scheduler: Named | None = Field(
        None,
        description="the scheduler to use instead of the model's own, for both sides unless a stage names the candidate's",
    )


def recognise(path: Path) -> Artifact | Problem | None:
    """A pipeline folder whose class generates images from text alone. One that would look its own size up where there is no table
    for it is called without looking."""
    found = read_pipeline(path)
    if found is None:
        return None
    if found.generates and not found.takes:
        artifact = Artifact(path, "text_to_image", found.components)
        return artifact.calling(**{BINNED: False}) if unbinned(artifact) else artifact
    why = "takes or gives something else" if found.denoiser else f"has no {' or '.join(DENOISERS)} of its own"
    message = f"pare generates images from text alone or changes images, and {found.kind or 'this pipeline'} {why}"
    return Problem(str(path), message, FIX)


def evidence(spec: EvalSpec) -> Mapping[str, tuple[int, ...]]:
    each = repeats(spec)
    return {"images": (each,) if each > 1 else ()}


def repeats(spec: EvalSpec) -> int:
    return spec.of(Judging).images_per_prompt


def usage(usage: Usage) -> tuple[str, ...]:
    """Stock diffusers opens a pipeline of torch components alone."""
    opened = "DiffusionPipeline.from_pretrained" if usage.stock else "compress.load"
    moved = f".to({literal(usage.device)})" if usage.stock and usage.device != CPU else ""
    typed = f", torch_dtype={usage.dtype}" if usage.stock and usage.dtype else ""
    called = replace(usage, call={name: value for name, value in usage.call.items() if name != SCHEDULER})
    return (
        *(("import torch",) if typed else ()),
        "from diffusers import DiffusionPipeline" if usage.stock else "import compress",
        f"generate = {opened}({usage.opened}{typed}){moved}",
        *adapted(usage, "generate"),
        *scheduled(usage, "generate"),
        f'generate({literal(usage.text or "a red house by the sea")}{called.arguments()}).images[0].save("image.png")',
    )


def adapted(usage: Usage, pipeline: str) -> tuple[str, ...]:
    """Lines that load the adapters beside a model, where that is not pare's affair."""
    given = usage.adapters if usage.stock else ()
    lines = tuple(
        f"{pipeline}.load_lora_weights({literal(usage.folder)}, subfolder={literal(path)}, weight_name={literal(LORA_FILE)}, "
        f"adapter_name={literal(name)})"
        for name, path, _ in given
    )
    names, scales = [name for name, _, _ in given], [scale for _, _, scale in given]
    several = len(given) > 1 or scales not in ([], [1.0])
    return (*lines, *((f"{pipeline}.set_adapters({json.dumps(names)}, {scales})",) if several else ()))


def scheduled(usage: Usage, pipeline: str) -> tuple[str, ...]:
    """Lines that put the scheduler in the place of the model's own that the model was measured with.

    Args:
        pipeline: what the lines in front of them call it.
    """
    file = Path(usage.folder) / SCHEDULER_CONFIG
    if SCHEDULER not in usage.call:
        return ()
    changed = changes(read_json(file) if file.is_file() else {}, str(usage.call[SCHEDULER]))
    kind = changed.pop("_class_name")
    more = "".join(f", {name}={literal(value)}" for name, value in changed.items())
    return (
        f"from diffusers import {kind}",
        f"{pipeline}.scheduler = {kind}.from_config({pipeline}.scheduler.config{more})",
    )


TASK = Task(
    name="text_to_image",
    title="text to image",
    data="captioned_images",
    yields=frozenset({"images", "latents", "denoising", "trajectories"}),
    settings=Judging,
    baseline=Generating,
    called=CALLED,
    instead={GUIDANCE: TRUE_GUIDANCE},
    reported=("steps", "guidance"),
    evidence=evidence,
    repeats=repeats,
    recognise=recognise,
    check=pipeline_problems,
    calls=call_faults,
    libraries=("torch", "transformers", "diffusers"),
    folders=True,
    usage=usage,
)
