"""Read what the shipped `zoo://digits-diffusion` paints for held-out captions, opened by plain diffusers.

    python -m compress.zoo.training.score --prompts 96 --record

Reference settings: guidance 3.0, 20 steps. `--record` adds the numbers to the model's `training.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from compress.zoo import MODELS, scenes
from compress.zoo.reader import marks

FOLDER = MODELS / "digits-diffusion"
GUIDANCE = 3.0
STEPS = 20
BATCH = 32


def held_out_captions(two_digits: bool, count: int) -> list[str]:
    """The first `count` captions of test scenes that name one digit, or two."""
    captions = (scenes.scene("test", index).caption for index in itertools.count())
    fitting = (c for c in captions if (scenes.parse(c)[0] != "single") == two_digits)
    return list(itertools.islice(fitting, count))


def paint(pipeline: StableDiffusionPipeline, captions: list[str], steps: int = STEPS) -> NDArray[np.uint8]:
    """uint8 [n, 64, 64, 3]; picture i starts from the noise of seed i, whatever the batch."""
    pictures = []
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        painted = pipeline(
            batch, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=seeds, output_type="np"
        ).images
        pictures.append(np.round(painted * 255).astype(np.uint8))
    return np.concatenate(pictures)


def score(
    folder: Path, count: int, dtype: torch.dtype = torch.float32, steps: int = STEPS
) -> dict[str, dict[str, float]]:
    """Mean share of digits and of inks read right, for `count` one-digit and as many two-digit captions."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    found = {}
    for name, two_digits in (("one_digit", False), ("two_digits", True)):
        captions = held_out_captions(two_digits, count)
        digits, inks = marks(captions, paint(pipeline, captions, steps))
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
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
    found = score(arguments.folder, arguments.prompts, dtype, arguments.steps)
    print(json.dumps(found, indent=1))
    if arguments.record:
        path = arguments.folder / "training.json"
        settings = {"guidance": GUIDANCE, "steps": arguments.steps, "dtype": str(dtype).removeprefix("torch.")}
        facts = {**json.loads(path.read_text()), "test": {**settings, **found}}
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
