"""Train the autoencoder of `zoo://digits-diffusion`: 64×64 images to 4×8×8 latents.

    python -m compress.zoo.training.digits_vae --minutes 12

It goes on from the last checkpoint, else with `--from-shipped` from the shipped weights, else from nothing.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKL

from compress.params import Training
from compress.zoo import MODELS, scenes
from compress.zoo.digit_classifier import marks
from compress.zoo.training.loop import CHECKPOINTS, train

BATCH = 16
INK_WEIGHT = 4.0  # a tenth of the pixels are ink, and its colour is what a caption names
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


def images(split: str, start: int, count: int) -> torch.Tensor:
    """Scenes `start` to `start + count`, float [n, 3, 64, 64] in −1..1."""
    batch = np.stack([scenes.render(scenes.scene(split, start + i)) for i in range(count)])
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1


def load(*, shipped: bool) -> AutoencoderKL:
    """The autoencoder in float32: as it is shipped, or as the last training left it."""
    folder = MODELS / "digits-diffusion" / "vae" if shipped else FOLDER
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)


def distance(generated: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weighted absolute plus twice the squared error of float [n, 3, h, w], ink counting `INK_WEIGHT` times as much."""
    paper = target.flatten(2).median(-1).values[..., None, None]
    ink = (target - paper).abs().amax(1, keepdim=True) > 0.25
    weight = torch.where(ink, INK_WEIGHT, 1.0)
    error = (generated.float() - target).abs()
    return (weight * (error + 2 * error.square())).sum() / (3 * weight.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate; less for trained weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from-shipped", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    vae = load(shipped=True).train() if arguments.from_shipped else new_vae()
    print(sum(p.numel() for p in vae.parameters()) / 1e6, "M parameters")

    def loss_at(step: int) -> torch.Tensor:
        target = images("train", step * BATCH, BATCH)
        posterior = vae.encode(target).latent_dist
        generated = vae.decode(posterior.sample()).sample
        return distance(generated, target) + 1e-4 * posterior.kl().mean() / 256

    how = Training(steps=arguments.steps, learning_rate=arguments.rate, warmup=200, ema=0.995)
    train("digits-vae", vae, loss_at, how, arguments.minutes)
    with torch.no_grad():
        held_out = images("validation", 0, 256)
        latents = vae.encode(held_out).latent_dist.mean
        generated = vae.decode(latents).sample.clamp(-1, 1)
        error = (generated - held_out).abs().mean()
    captions = [scenes.scene("validation", i).caption for i in range(256)]
    digits, inks = marks(captions, ((generated + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    vae.save_pretrained(FOLDER)
    print("held-out mean absolute error, of 255:", float(error) * 127.5, "scaling", vae.config.scaling_factor)
    print("digits and inks still read right:", digits.mean(), inks.mean())


if __name__ == "__main__":
    main()
