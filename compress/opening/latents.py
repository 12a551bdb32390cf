"""Images to latents, as a pipeline's denoiser takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

PACK = "_pack_latents"  # as pipelines name it whose denoiser sees patches in a row


def encoded(
    pipeline: Any, images: Sequence[NDArray[np.uint8]], shape: Sequence[int], call: Mapping[str, Any]
) -> torch.Tensor | None:
    """Latents of images, float32 [images, *shape]; None where a pipeline makes them in a way that is not known here.

    Args:
        call: how the pipeline is called, for the height and width of what it generates.

    Each image is cut to the shape of what the pipeline generates, about its middle, and resized. The most likely latent is taken:
    a VAE's own noise is small beside any that is added.
    """
    vae = getattr(pipeline, "vae", None)
    factor = getattr(pipeline, "vae_scale_factor", None)
    if vae is None or factor is None or getattr(vae.config, "latents_mean", None) is not None:
        return None
    packed = hasattr(pipeline, PACK)
    height, width = _size(pipeline, shape, factor, call if packed else None)
    fitted = [_fitted(Image.fromarray(image), height, width) for image in images]
    given = pipeline.image_processor.preprocess(fitted, height, width).to(vae.device, vae.dtype)
    with torch.no_grad():
        made = vae.encode(given)
    latents = made.latent if hasattr(made, "latent") else made.latent_dist.mode()
    config = vae.config
    latents = (latents - (getattr(config, "shift_factor", None) or 0.0)) * (
        getattr(config, "scaling_factor", None) or 1.0
    )
    if packed:
        latents = getattr(pipeline, PACK)(latents, *latents.shape)
    return latents.float() if tuple(latents.shape[1:]) == tuple(shape) else None


def _size(pipeline: Any, shape: Sequence[int], factor: int, call: Mapping[str, Any] | None) -> tuple[int, int]:
    """Height and width in pixels of what a latent of this shape is decoded to; of patches in a row, which have none, the call's."""
    if call is None:
        return int(shape[-2] * factor), int(shape[-1] * factor)
    own = int(pipeline.default_sample_size * factor)
    return int(call.get("height") or own), int(call.get("width") or own)


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest part about the middle that has the shape asked for."""
    scale = min(image.height / height, image.width / width)
    tall, wide = min(image.height, round(height * scale)), min(image.width, round(width * scale))
    top, left = (image.height - tall) // 2, (image.width - wide) // 2
    return image.crop((left, top, left + wide, top + tall))
