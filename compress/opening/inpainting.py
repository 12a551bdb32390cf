"""Inpainting: a stock diffusers pipeline that is given an image and a mask beside each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from compress.artifact import Artifact
from compress.data.fitted import fitted_mask, mask_fault
from compress.data.items import Item
from compress.errors import DataError, StageFailed
from compress.machine.devices import Opening
from compress.opening.image_to_image import ImageToImage
from compress.opening.models import Call
from compress.pipelines.image_inputs import PASTED


def open_model(artifact: Artifact, opening: Opening) -> Inpainting:
    return Inpainting(artifact, opening)


class Inpainting(ImageToImage):
    """A pipeline ready to inpaint images where their masks say so."""

    def example(self, id: str, text: str) -> Item:
        """Waves of colour, to be inpainted in the middle."""
        tall, wide = self.size({})
        mask = np.zeros((tall, wide), bool)
        mask[tall // 4 : tall - tall // 4, wide // 4 : wide - wide // 4] = True
        return replace(super().example(id, text), mask=lambda: mask)

    def given(self, items: Sequence[Item]) -> Call:
        """Captions, inputs and masks, white where the image is inpainted."""
        masks = [Image.fromarray(_mask_of(item).astype(np.uint8) * 255) for item in items]
        return {**super().given(items), "mask_image": masks}

    def read(self, item: Item, size: tuple[int, int]) -> Item:
        mask = fitted_mask(whole := _mask_of(item), *size)
        if why := mask_fault(whole, *size):
            fix = "give a mask within the middle, or a size of the input's shape"
            raise DataError(f"its mask {why}", place=item.id, fix=fix)
        return replace(super().read(item, size), mask=lambda: mask)

    def call(self, items: Sequence[Item], generators: list[torch.Generator], output: str, arguments: Call) -> Any:
        """As `TextToImage.call`. What is pasted into its input is so by diffusers image by image, as PIL has them."""
        if arguments.get(PASTED) is None:
            return super().call(items, generators, output, arguments)
        pairs = zip(self.held(items, **arguments), generators, strict=True)
        prepared = self.prepared(_first(arguments))
        return np.stack([self._pasted(item, one, prepared) for item, one in pairs]).astype(np.float32) / 255

    def _pasted(self, item: Item, generator: torch.Generator, arguments: Call) -> NDArray[np.uint8]:
        """An input with what was inpainted in its mask, uint8 [height, width, 3].

        Raises:
            StageFailed: a pixel outside the mask is another, which diffusers promises not to touch.
        """
        given = self.given([item])
        alone = {**given, "image": given["image"][0], "mask_image": given["mask_image"][0]}
        (image,) = self.pipeline(**alone, generator=[generator], output_type="pil", **arguments).images
        made, before = np.asarray(image.convert("RGB")), np.asarray(alone["image"])
        kept = ~_mask_of(item)
        if made.shape != before.shape or (made[kept] != before[kept]).any():
            raise StageFailed(
                f"{PASTED} promises that nothing changes outside the mask, and what the pipeline gives is another there",
                place=item.id,
                fix=f"leave {PASTED} out, or use another version of diffusers",
            )
        return made


def _mask_of(item: Item) -> NDArray[np.bool_]:
    if item.mask is None:
        message = "has no mask of what is inpainted"
        raise DataError(message, place=item.id, fix="give data with mask_file_name; `pare explain data` tells all")
    return item.mask()


def _first(arguments: Call) -> Call:
    """The arguments of a call for one item: what stands for each stands once."""
    return {name: value[:1] if isinstance(value, list) else value for name, value in arguments.items()}
