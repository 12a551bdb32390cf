"""Train `zoo://digits-inpainting`: Stable Diffusion's inpainting model in small, on the holes of `zoo://digits-holes`.

    python -m compress.zoo.training.digits_inpainting --minutes 25

It goes on from the last checkpoint, else with `--from-shipped` from the shipped weights, else from nothing. Beside the noisy latents the UNet
sees the mask and the latents of the image without what the mask covers (Rombach et al., 2022); a tenth of the captions is dropped.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline

from compress.zoo import holes, scenes
from compress.zoo.training import digits_vae
from compress.zoo.training.given_images import BATCH, LATENT, Setup, arguments, encoded, kept, learn, read

NAME = "digits-inpainting"
DROPPED = 0.1


class Batches:
    """The training scenes and what is left of them around their holes, encoded once."""

    def __init__(self, vae: AutoencoderKL, count: int) -> None:
        every = [holes.hole("train", index) for index in range(count)]

        def encode() -> dict[str, torch.Tensor]:
            masks = [torch.from_numpy(one.mask)[None].float() for one in every]
            return {
                "scene": encoded(vae, (scenes.render(one.scene) for one in every)),
                "left": encoded(vae, (one.rest for one in every)),
                # As the pipeline shrinks them: the nearest pixel of each latent.
                "mask": torch.nn.functional.interpolate(torch.stack(masks), size=(8, 8)).contiguous(),
            }

        found, scale = kept(NAME, count, encode), vae.config.scaling_factor
        self.scene, self.beside = found["scene"] * scale, torch.cat([found["mask"], found["left"] * scale], dim=1)
        self.texts = read([one.scene.caption for one in every])

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draw = torch.from_numpy(np.random.default_rng([19, step]).integers(len(self.scene), size=BATCH))
        return self.scene[draw], self.beside[draw], self.texts.of(draw, torch.rand(BATCH) < DROPPED)


def main() -> None:
    asked = arguments(__doc__, NAME)
    batches = Batches(digits_vae.load(shipped=True), asked.scenes)
    learn(Setup(NAME, "zoo://digits-holes/train", StableDiffusionInpaintPipeline, 2 * LATENT + 1, batches), asked)


if __name__ == "__main__":
    main()
