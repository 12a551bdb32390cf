"""Train the autoencoder of `zoo://digits-diffusion`: 64×64 pictures to 4×8×8 latents.

python -m compress.zoo.training.digits_vae --minutes 12
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKL

from compress.zoo import scenes
from compress.zoo.training.loop import CHECKPOINTS, Schedule, train

BATCH = 16
FOLDER = CHECKPOINTS / "vae-trained"


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
    )


def pictures(split: str, start: int, count: int) -> torch.Tensor:
    """Scenes `start` to `start + count`, float [n, 3, 64, 64] in −1..1."""
    batch = np.stack([scenes.render(scenes.scene(split, start + i)) for i in range(count)])
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = new_vae()
    print(sum(p.numel() for p in vae.parameters()) / 1e6, "M parameters")

    def loss_at(step: int) -> torch.Tensor:
        target = pictures("train", step * BATCH, BATCH)
        posterior = vae.encode(target).latent_dist
        painted = vae.decode(posterior.sample()).sample
        error = (painted.float() - target).abs().mean() + 2 * (painted.float() - target).square().mean()
        return error + 1e-4 * posterior.kl().mean() / 256

    train("digits-vae", vae, loss_at, Schedule(arguments.steps, 2e-3, ema=0.995), arguments.minutes)
    with torch.no_grad():
        held_out = pictures("validation", 0, 64)
        latents = vae.encode(held_out).latent_dist.mean
        error = (vae.decode(latents).sample.clamp(-1, 1) - held_out).abs().mean()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    vae.save_pretrained(FOLDER)
    print("held-out mean absolute error, of 255:", float(error) * 127.5, "scaling", vae.config.scaling_factor)


if __name__ == "__main__":
    main()
