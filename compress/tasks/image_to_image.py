"""Image to image: a diffusers pipeline that makes another image of each, as a prompt says; how far it goes is its strength."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import Field

from compress.artifact import SCHEDULER, Artifact
from compress.machine.devices import CPU
from compress.pipelines.call_arguments import GUIDANCE, TRUE_GUIDANCE, call_arguments, call_faults
from compress.pipelines.image_inputs import STRENGTH
from compress.pipelines.image_sizes import SIDES, own_size
from compress.pipelines.index import class_of, read_pipeline
from compress.pipelines.part_checks import pipeline_problems
from compress.tasks import Task, Usage, literal
from compress.tasks.text_to_image import CALLED, Generating, Judging, adapted, evidence, repeats, scheduled

KINDS = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "FluxImg2ImgPipeline",
)


class Changing(Generating):
    """How the baseline generates from an image."""

    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="how much noise is laid over the input, for both sides: that share of the steps is run; default: the pipeline's own",
    )


def recognised(path: Path, kinds: tuple[str, ...], task: str) -> Artifact | None:
    """A pipeline folder of one of some classes as an artifact of a task, or None."""
    found = read_pipeline(path)
    return Artifact(path, task, found.components) if found and found.kind in kinds else None


def editing(usage: Usage, text: str, images: tuple[str, ...]) -> tuple[str, ...]:
    """Lines of Python that call a pipeline with images.

    Args:
        text: to try it on, where there is none. images: what the call names them.
    """
    opened = "DiffusionPipeline.from_pretrained" if usage.stock else "compress.load"
    moved = f".to({literal(usage.device)})" if usage.stock and usage.device != CPU else ""
    typed = f", torch_dtype={usage.dtype}" if usage.stock and usage.dtype else ""
    takes = call_arguments(class_of(Path(usage.folder)))
    left_out = {SCHEDULER, *(side for side in SIDES if takes is not None and side not in takes)}
    called = replace(usage, call={name: value for name, value in usage.call.items() if name not in left_out})
    read = {name: _fitted(f'load_image("{FILES[name]}")', name, _size(usage)) for name in images}
    words = literal(usage.text or text)
    # One of FLUX's pipelines takes the image in front of the text.
    behind = next(iter(takes or ()), "") == "image"
    first = f"{read.pop('image')}, {words}" if behind else words
    given = "".join(f", {name}={one}" for name, one in read.items())
    return (
        *(("import torch",) if typed else ()),
        *(("from PIL import Image, ImageOps",) if _size(usage) else ()),
        f"{'from diffusers import DiffusionPipeline' if usage.stock else 'import compress'}; from diffusers.utils import load_image",
        f"edit = {opened}({usage.opened}{typed}){moved}",
        *adapted(usage, "edit"),
        *scheduled(usage, "edit"),
        f'edit({first}{given}{called.arguments()}).images[0].save("image.png")',
    )


def _fitted(image: str, name: str, size: tuple[int, int] | None) -> str:
    """An image in Python, cut about its middle to the shape of a size and resized to it, as it was where the model was measured."""
    how = "NEAREST" if name == "mask_image" else "LANCZOS"
    return f"ImageOps.fit({image}, {size}, Image.{how})" if size else image


def _size(usage: Usage) -> tuple[int, int] | None:
    """Width and height of what the pipeline is given; None where nobody knows."""
    found = read_pipeline(Path(usage.folder))
    own = own_size(Artifact(Path(usage.folder), TASK.name, found.components)) if found else 0
    tall, wide = (usage.call.get(side, own) for side in SIDES)
    return (wide, tall) if isinstance(wide, int) and isinstance(tall, int) and wide and tall else None


FILES: Mapping[str, str] = {"image": "input.png", "mask_image": "mask.png"}
# Of other tasks that are given images the records are this one, but for what they say themselves.
TASK = Task(
    name="image_to_image",
    title="image to image",
    data="image_edits",
    takes=frozenset({"inputs"}),
    yields=frozenset({"images", "latents", "denoising", "trajectories", "inputs"}),
    settings=Judging,
    baseline=Changing,
    called={**CALLED, "strength": STRENGTH},
    instead={GUIDANCE: TRUE_GUIDANCE},
    reported=("steps", "strength", "guidance"),
    evidence=evidence,
    repeats=repeats,
    recognise=partial(recognised, kinds=KINDS, task="image_to_image"),
    check=pipeline_problems,
    calls=call_faults,
    libraries=("torch", "transformers", "diffusers"),
    usage=partial(editing, text="a red house by the sea", images=("image",)),
)
