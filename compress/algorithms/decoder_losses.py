"""What a small autoencoder learns from a large one: its images, pixel by pixel and feature by feature, and its latents.

The features are those of the large one's own encoder, so that no other network is needed. Source: Johnson et al., "Perceptual
Losses for Real-Time Style Transfer and Super-Resolution" (2016); Zhao et al., "Loss Functions for Image Restoration with Neural
Networks" (2017), absolute beside squared errors; Bohan, "TAESD: Tiny AutoEncoder for Stable Diffusion" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compress.algorithms.losses import relative_error
from compress.pipelines.autoencoders import Scaling

EDGE = 8  # of a window, this part of each cut side is not judged: the small model does not see what lies beyond


@dataclass(frozen=True)
class Window:
    """A square cut out of a latent of so many rows and columns, and the part of it that is judged."""

    top: int
    left: int
    height: int
    width: int
    rows: slice  # of the window: those that are judged
    columns: slice

    def of(self, grid: torch.Tensor, scale: int) -> torch.Tensor:
        """The window out of [..., rows * scale, columns * scale]."""
        top, left = self.top * scale, self.left * scale
        return grid[..., top : top + self.height * scale, left : left + self.width * scale]

    def judged(self, found: torch.Tensor, scale: int) -> torch.Tensor:
        """What is judged of a window [..., height * scale, width * scale]."""
        rows, columns = (slice(s.start * scale, s.stop * scale) for s in (self.rows, self.columns))
        return found[..., rows, columns]


def draw_window(rows: int, columns: int, side: int, draws: Sequence[float]) -> Window:
    """A window of at most `side` by `side`, its place by two numbers in 0..1; whatever of it is no edge of the image and was cut
    keeps a margin that is not judged."""
    (top, height, judged), (left, width, across) = (
        _stretch(whole, side, draw) for whole, draw in zip((rows, columns), draws, strict=True)
    )
    return Window(top, left, height, width, judged, across)


def _stretch(whole: int, side: int, draw: float) -> tuple[int, int, slice]:
    length = min(whole, side)
    start = int(draw * (whole - length + 1))
    margin = length // EDGE
    first = margin if start else 0
    last = length - (margin if start + length < whole else 0)
    return start, length, slice(first, last)


@dataclass(frozen=True)
class Autoencoder:
    """A VAE beside the latents of a pipeline, [n, channels, rows, columns], of which it is given w * factor + shift."""

    vae: Any
    factor: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, vae: Any, scaling: Scaling, device: torch.device | str) -> Autoencoder:
        return cls(vae, *(torch.tensor(n, device=device).view(1, -1, 1, 1) for n in (scaling.factor, scaling.shift)))

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's latents, from those that the VAE is given."""
        return (latents - self.shift) / self.factor

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in -1..1 and somewhat beyond, [n, 3, height, width]."""
        images: torch.Tensor = self.vae.decode(latents * self.factor + self.shift, return_dict=False)[0]
        return images

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The latents of images; of a distribution of latents its mean and, as so many channels more, its standard deviation."""
        reported = self.vae.encode(images, return_dict=False)[0]
        if torch.is_tensor(reported):
            return self.unscaled(reported)
        return torch.cat([self.unscaled(reported.mean), reported.std / self.factor], 1)


def look(vae: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """What a VAE's encoder sees in images, at each of its sizes."""
    encoder = vae.encoder
    if hasattr(encoder, "down_blocks"):
        layers, seen = [encoder.conv_in, *encoder.down_blocks], images
    else:  # an AutoencoderTiny takes 0..1
        layers, seen = list(encoder.layers), (images + 1) / 2
    found = []
    for layer in layers:
        seen = layer(seen)
        found.append(seen)
    return found


def image_errors(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute plus twice the mean squared error: the first for edges, the second for colours."""
    error = found.float() - wanted
    return error.abs().mean() + 2 * error.square().mean()


def feature_errors(vae: Any, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean relative error of what a VAE's encoder sees in images."""
    with torch.no_grad():
        theirs = look(vae, wanted)
    pairs = zip(look(vae, found), theirs, strict=True)
    return torch.stack([relative_error(one, other) for one, other in pairs]).mean()


def peak_ratio(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of images in -1..1, dB, the mean over them."""
    error = (found.clamp(-1, 1) - wanted.clamp(-1, 1)).float().square().flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * (4 / error).log10()).mean())
