"""Read what a shipped generator of the zoo generates for held-out captions, opened by plain diffusers.

    python -m compress.zoo.training.score --model digits-dit --prompts 96 --record

Reference settings: guidance 3.0, 20 steps. `--record` adds the numbers to the model's `training.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from compress.model.describing import describe
from compress.zoo import MODELS, scenes
from compress.zoo.digit_classifier import marks

FOLDER = MODELS / "digits-diffusion"
GUIDANCE = 3.0
STEPS = 20
BATCH = 32


def held_out_captions(two_digits: bool, count: int) -> list[str]:
    """The first `count` captions of test scenes that name one digit, or two."""
    captions = (scenes.scene("test", index).caption for index in itertools.count())
    fitting = (c for c in captions if (scenes.parse(c)[0] != "single") == two_digits)
    return list(itertools.islice(fitting, count))


def generate(
    pipeline: DiffusionPipeline, captions: list[str], steps: int = STEPS, call: Mapping[str, Any] | None = None
) -> NDArray[np.uint8]:
    """uint8 [n, 64, 64, 3]; image i starts from the noise of seed i, whatever the batch.

    Args:
        call: what the model's own manifest says of its call; without it, guidance is asked for by its usual name.
    """
    images, asked = [], {**(call or {"guidance_scale": GUIDANCE}), "num_inference_steps": steps}
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        both = {"negative_prompt": [asked["negative_prompt"]] * len(batch)} if "negative_prompt" in asked else {}
        generated = pipeline(batch, **{**asked, **both}, generator=seeds, output_type="np").images
        images.append(np.round(generated * 255).astype(np.uint8))
    return np.concatenate(images)


def score(
    folder: Path, count: int, dtype: torch.dtype = torch.float32, steps: int = STEPS
) -> dict[str, dict[str, float]]:
    """Mean share of digits and of inks read right, for `count` one-digit and as many two-digit captions."""
    pipeline, call = DiffusionPipeline.from_pretrained(folder, dtype=dtype), describe(folder).settings.call
    pipeline.set_progress_bar_config(disable=True)
    found = {}
    for name, two_digits in (("one_digit", False), ("two_digits", True)):
        captions = held_out_captions(two_digits, count)
        digits, inks = marks(captions, generate(pipeline, captions, steps, call))
        found[name] = {
            "prompts": count,
            "digits_read": round(float(digits.mean()), 4),
            "inks_right": round(float(inks.mean()), 4),
        }
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
        settings = {"guidance": GUIDANCE, "steps": arguments.steps, "dtype": str(dtype).removeprefix("torch.")}
        facts = {**json.loads(path.read_text()), "test": {**settings, **found}}
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
