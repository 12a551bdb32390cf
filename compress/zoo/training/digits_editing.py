"""Train `zoo://digits-editing`: InstructPix2Pix in small, on the edits of `zoo://digits-edits`.

    python -m compress.zoo.training.digits_editing --minutes 25

It goes on from the last checkpoint, else with `--from-shipped` from the shipped weights, else from nothing. For the guidances of text and image
the text is dropped of a twentieth, the image of another, and both of a third (Brooks et al., "InstructPix2Pix", 2023).
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline

from compress.zoo import edits, scenes
from compress.zoo.training import digits_vae
from compress.zoo.training.given_images import BATCH, LATENT, Setup, arguments, encoded, kept, learn, read

NAME = "digits-editing"
DROPPED = 0.05  # of the texts alone, of the images alone, and of both


class Batches:
    """The training edits, encoded once."""

    def __init__(self, vae: AutoencoderKL, count: int) -> None:
        every = [edits.edit("train", index) for index in range(count)]

        def encode() -> dict[str, torch.Tensor]:
            sides = {"before": [one.before for one in every], "after": [one.after for one in every]}
            return {name: encoded(vae, map(scenes.render, side)) for name, side in sides.items()}

        found = kept(NAME, count, encode)
        self.before = found["before"]  # which the pipeline does not scale
        self.after = found["after"] * vae.config.scaling_factor
        self.texts = read([one.instruction for one in every])

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draw = torch.from_numpy(np.random.default_rng([17, step]).integers(len(self.after), size=BATCH))
        chance = torch.rand(BATCH)
        no_text, no_image = chance < 2 * DROPPED, (chance >= DROPPED) & (chance < 3 * DROPPED)
        before = torch.where(no_image[:, None, None, None], 0.0, self.before[draw])
        return self.after[draw], before, self.texts.of(draw, no_text)


def main() -> None:
    asked = arguments(__doc__, NAME)
    batches = Batches(digits_vae.load(shipped=True), asked.scenes)
    learn(Setup(NAME, "zoo://digits-edits/train", StableDiffusionInstructPix2PixPipeline, 2 * LATENT, batches), asked)


if __name__ == "__main__":
    main()
