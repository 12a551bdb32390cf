"""How an image becomes as large as an extractor wants it. The choice moves a FID by whole points, so it has a name.

pil: bicubic with antialiasing, each channel a float32 image of its own and never rounded; the default, and what clean-fid does.
mlperf: bilinear between pixel centres, without antialiasing; torch's interpolation, as pytorch-fid and MLPerf use it.
tf1: bilinear between pixel corners, as TensorFlow 1 did it when FID was first published.
Source: Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation" (2022).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from compress.errors import UserError

Resize = Literal["pil", "mlperf", "tf1"]
# What happens to an image that is no square: squeezed into one, or its shorter edge fitted and the middle cut out.
Fit = Literal["squash", "crop"]


def resize_mode(name: str) -> Resize:
    """The mode of that name.

    Raises:
        UserError: there is none.
    """
    modes: tuple[Resize, ...] = get_args(Resize)
    for mode in modes:
        if mode == name:
            return mode
    raise UserError(f"no way to resize is called `{name}`", fix=f"one of {', '.join(modes)}")


def resize(images: NDArray[np.uint8], size: int, mode: Resize, fit: Fit = "squash") -> torch.Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, size, size] in 0..255. Images of that size already are left as they are."""
    height, width = images.shape[1:3]
    if fit == "crop":
        short = min(height, width)
        height, width = size * height // short, size * width // short
    else:
        height, width = size, size
    found = _to(images, height, width, mode)
    top, left = (height - size) // 2, (width - size) // 2
    return found[:, :, top : top + size, left : left + size]


def _to(images: NDArray[np.uint8], height: int, width: int, mode: Resize) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()  # a copy: a read-only array may be given
    if pixels.shape[2:] == (height, width):
        return pixels
    if mode == "pil":
        return torch.from_numpy(np.stack([_pil(image, height, width) for image in images]))
    if mode == "mlperf":
        return torch.nn.functional.interpolate(
            pixels, size=(height, width), mode="bilinear", align_corners=False, antialias=False
        )
    return _corners(_corners(pixels, width, axis=3), height, axis=2)


def _pil(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """uint8 [h, w, 3] to float32 [3, height, width]. Bicubic overshoots at edges; what no image can hold is cut off."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(image, 2, 0)]
    found = [np.asarray(c.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) for c in channels]
    return np.stack(found).clip(0, 255)


def _corners(pixels: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """Linear along one axis, where pixel i of `size` lies at i × (old size / size): no half pixel is added.

    In float32 and along the width first, for TensorFlow's kernel did so, to the last bit.
    """
    old = pixels.shape[axis]
    place = torch.arange(size, dtype=torch.float32, device=pixels.device)
    place = place * torch.tensor(old / size, dtype=torch.float32, device=pixels.device)
    before = place.long().clamp(max=old - 1)
    after = (before + 1).clamp(max=old - 1)
    share = (place - before).view([size if a == axis else 1 for a in range(4)])
    low, high = pixels.index_select(axis, before), pixels.index_select(axis, after)
    return low + (high - low) * share
