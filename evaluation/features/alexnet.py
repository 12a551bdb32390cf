"""The original LPIPS network: AlexNet's five convolutions and the weight that people gave each of their channels.

Nothing is downloaded. The one local file holds torchvision's AlexNet (`features.0.weight` … `features.10.bias`) and LPIPS' own
`lin0` to `lin4`, of 64 to 256 channels. Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric" (2018), version 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional

from compress.algorithms.tensors import to_array
from compress.errors import ModelError, UserError
from compress.files.hashing import digest_file
from compress.machine.devices import CPU

# Of each stage: the number of its convolution in torchvision's `features`, stride, padding, whether pooling comes before it.
STAGES = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
# LPIPS' scaling layer, on pixels in −1..1: ImageNet's mean and deviation, as its authors rounded them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST = 31  # pixels a side that leave one position after both poolings


@dataclass(frozen=True)
class AlexNet:
    """`convolutions`: weight and bias of each stage. `weights`: what each of its channels counts, float32 [channels]."""

    name: str
    digest: str
    convolutions: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    weights: tuple[NDArray[np.float32], ...]

    def layers(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """uint8 [n, height, width, 3] to each stage's activations, float32 [n, positions, channels].

        Raises:
            UserError: the images are too small for five stages.
        """
        if min(batch.shape[1:3]) < SMALLEST:
            raise UserError(
                f"images of {batch.shape[2]} × {batch.shape[1]} pixels are too small for AlexNet, which needs {SMALLEST}",
                fix="give lpips other features, such as zoo://digits-clip",
            )
        pixels = torch.from_numpy(batch.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        found, now = [], (pixels - _per_colour(SHIFT)) / _per_colour(SCALE)
        with torch.inference_mode():
            for (_, stride, padding, pooled), (weight, bias) in zip(STAGES, self.convolutions, strict=True):
                now = functional.max_pool2d(now, 3, 2) if pooled else now
                now = functional.relu(functional.conv2d(now, weight, bias, stride, padding))
                found.append(to_array(now.flatten(2).transpose(1, 2).contiguous()))
        return found


def _per_colour(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, device=CPU).reshape(3, 1, 1)


@cache
def open_alexnet(path: Path) -> AlexNet:
    """Open a `.safetensors` of AlexNet's and LPIPS' weights.

    Raises:
        ModelError: it does not read, or lacks one of them.
    """
    try:
        tensors = load_file(path)
        convolutions = tuple((tensors[f"features.{n}.weight"], tensors[f"features.{n}.bias"]) for n, *_ in STAGES)
        weights = tuple(_channel_weights(tensors, stage) for stage in range(len(STAGES)))
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(
            f"holds no AlexNet of LPIPS: {error}",
            place=str(path),
            fix="save torchvision's `features.*` and LPIPS' `lin0.model.1.weight` to `lin4.…` into one file",
        ) from error
    floats = tuple((weight.float(), bias.float()) for weight, bias in convolutions)
    return AlexNet(path.stem, digest_file(path), floats, weights)


def _channel_weights(tensors: Mapping[str, torch.Tensor], stage: int) -> NDArray[np.float32]:
    """LPIPS keeps them as a convolution [1, channels, 1, 1] behind a dropout, hence the name."""
    name = f"lin{stage}.model.1.weight"
    found = tensors[name] if name in tensors else tensors[f"lin{stage}.weight"]
    flat: NDArray[np.float32] = to_array(found.float().flatten())
    return flat
