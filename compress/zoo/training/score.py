"""Read what a shipped generator of the zoo generates for held-out captions, edits or holes, opened by plain diffusers.

    python -m compress.zoo.training.score --model digits-dit --prompts 96 --record

Reference settings: guidance 3.0, 20 steps; where a model is guided by an image too, guidance 2.0 and 1.5 by the image. `--record` adds the numbers
to the model's `training.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from compress.data.items import Item
from compress.model.describing import describe
from compress.zoo import MODELS, edits, holes, open_zoo_data, scenes
from compress.zoo.digit_classifier import marks, shown

FOLDER = MODELS / "digits-diffusion"
GUIDANCE = 3.0
EDITING = {"guidance_scale": 2.0, "image_guidance_scale": 1.5}
STEPS = 20
BATCH = 32
ROUNDING = 1 / 12  # mean squared error of images that differ in their rounding alone


def of_two_digits(index: int) -> bool:
    return scenes.scene("test", index).layout != "single"


@dataclass(frozen=True)
class Exam:
    """What a model is scored on: held-out items, in groups by what `group` says of their numbers; further arguments of its call; and where each
    input is to stay as it is, bool [64, 64]."""

    data: str
    groups: Mapping[str, object]
    group: Callable[[int], object]
    call: Mapping[str, float]
    kept: Callable[[int], NDArray[np.bool_]] | None = None


PAIRS = {"one_digit": False, "two_digits": True}
CAPTIONS = Exam("zoo://digits/test", PAIRS, of_two_digits, {"guidance_scale": GUIDANCE})
EXAMS = {  # of what is given more than captions, by the task that its folder is recognised as
    "instruction_editing": Exam(
        "zoo://digits-edits/test",
        {change: change for change in edits.SHARES},
        lambda index: edits.edit("test", index).change,
        EDITING,
        lambda index: edits.edit("test", index).kept,
    ),
    "inpainting": Exam(
        "zoo://digits-holes/test",
        PAIRS,
        of_two_digits,
        {"guidance_scale": GUIDANCE},
        lambda index: ~holes.hole("test", index).mask,
    ),
}


def held_out(exam: Exam, group: str, count: int) -> list[Item]:
    """The first `count` items of a group."""
    fitting = (index for index in itertools.count() if exam.group(index) == exam.groups[group])
    return [open_zoo_data(exam.data).read(index) for index in itertools.islice(fitting, count)]


def held_out_captions(two_digits: bool, count: int) -> list[str]:
    """The first `count` captions of test scenes that name one digit, or two."""
    return [item.text for item in held_out(CAPTIONS, "two_digits" if two_digits else "one_digit", count)]


def generate(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[Item],
    steps: int = STEPS,
    call: Mapping[str, Any] | None = None,
) -> NDArray[np.uint8]:
    """uint8 [n, 64, 64, 3]; image i starts from the noise of seed i, whatever the batch.

    Args:
        prompts: captions, or items whose inputs and masks the pipeline is given with their texts.
        call: what the model's own manifest says of its call; without it, guidance is asked for by its usual name.
    """
    images, asked = [], {**(call or {"guidance_scale": GUIDANCE}), "num_inference_steps": steps}
    items = [one if isinstance(one, Item) else Item(one, one) for one in prompts]
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        both = {"negative_prompt": [asked["negative_prompt"]] * len(batch)} if "negative_prompt" in asked else {}
        given = {"prompt": [item.text for item in batch], **_images(batch)}
        generated = pipeline(**given, **{**asked, **both}, generator=seeds, output_type="np").images
        images.append(np.round(generated * 255).astype(np.uint8))
    return np.concatenate(images)


def _images(items: Sequence[Item]) -> dict[str, list[Image.Image]]:
    """Inputs and masks of items that have them, by the names of diffusers' arguments."""
    inputs = [Image.fromarray(item.input()) for item in items if item.input]
    masks = [Image.fromarray(item.mask().astype(np.uint8) * 255) for item in items if item.mask]
    return {name: found for name, found in (("image", inputs), ("mask_image", masks)) if found}


def decibels_kept(exam: Exam, items: Sequence[Item], generated: NDArray[np.uint8]) -> float:
    """Mean over the items of the peak signal to noise, decibel, where the input is to stay; nan where that is nowhere."""
    found = []
    for item, image in zip(items, generated, strict=True):
        assert item.input is not None
        assert exam.kept is not None
        kept = exam.kept(int(item.id.rpartition("/")[2]))
        if kept.any():
            error = np.square(item.input()[kept].astype(np.float64) - image[kept]).mean()
            found.append(10 * np.log10(255**2 / max(error, ROUNDING)))
    return float(np.mean(found)) if found else math.nan


def score(
    folder: Path, count: int, dtype: torch.dtype = torch.float32, steps: int = STEPS
) -> dict[str, dict[str, float]]:
    """By group of `count` held-out items each, the mean share of digits and of inks read right, and how well the rest was kept."""
    artifact = describe(folder)
    exam = EXAMS.get(artifact.task, CAPTIONS)
    pipeline, call = DiffusionPipeline.from_pretrained(folder, dtype=dtype), artifact.settings.call or exam.call
    pipeline.set_progress_bar_config(disable=True)
    found = {}
    for name in exam.groups:
        items = held_out(exam, name, count)
        images = generate(pipeline, items if artifact.task in EXAMS else [item.text for item in items], steps, call)
        digits, inks = marks([shown(item) for item in items], images)
        found[name] = {
            "prompts": count,
            "digits_read": round(float(digits.mean()), 4),
            "inks_right": round(float(inks.mean()), 4),
        }
        if exam.kept and not math.isnan(decibels := decibels_kept(exam, items, images)):
            found[name]["kept_psnr"] = round(decibels, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--model", default=FOLDER.name)
    parser.add_argument("--folder", type=Path, help="of a model that is not in the zoo yet")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
    folder = arguments.folder or MODELS / arguments.model
    found = score(folder, arguments.prompts, dtype, arguments.steps)
    print(json.dumps(found, indent=1))
    if arguments.record:
        path = folder / "training.json"
        call = EXAMS.get(describe(folder).task, CAPTIONS).call
        settings = {
            **{name.removesuffix("_scale"): scale for name, scale in call.items()},
            "steps": arguments.steps,
            "dtype": str(dtype).removeprefix("torch."),
        }
        facts = {**json.loads(path.read_text()), "test": {**settings, **found}}
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
