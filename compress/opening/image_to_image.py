"""Image to image: a stock diffusers pipeline that is given an image beside each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compress.artifact import Artifact
from compress.data.fitted import fitted
from compress.data.items import Item
from compress.errors import DataError
from compress.machine.devices import Opening
from compress.opening.models import Call
from compress.opening.text_to_image import LOOKS, TextToImage
from compress.pipelines.call_arguments import STEPS, call_arguments
from compress.pipelines.image_inputs import steps_for, strength_of
from compress.pipelines.image_sizes import SIDES, called_size
from compress.pipelines.index import class_of

if TYPE_CHECKING:
    import torch

PERIODS = 3  # of the waves in an image of no data


def open_model(artifact: Artifact, opening: Opening) -> ImageToImage:
    return ImageToImage(artifact, opening)


class ImageToImage(TextToImage):
    """A pipeline ready to make other images of images. All that it is given are brought to one size: that of its call, or its own."""

    @property
    def takes(self) -> Mapping[str, object]:
        """The arguments of the pipeline's call, with their defaults."""
        return call_arguments(class_of(self.artifact.path)) or {}

    @property
    def brief(self) -> Mapping[str, Any]:
        """As many steps as are looked at run, at the strength of the model's own call."""
        return {STEPS: self.asking(LOOKS, {})}

    def asking(self, run: int, call: Mapping[str, Any]) -> int:
        """How many steps must be asked for, so that so many run."""
        return steps_for(class_of(self.artifact.path), run, strength_of(self.artifact, call, self.takes))

    def size(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of what a call with these arguments is given, and generates."""
        return called_size(self.artifact, call)

    def example(self, id: str, text: str) -> Item:
        """Waves of colour, of the size that the model's own call generates."""
        return replace(Item(id, text), input=partial(_waves, *self.size({})))

    def given(self, items: Sequence[Item]) -> Call:
        """What the pipeline is given of the items: their captions and inputs."""
        return {**super().given(items), "image": [Image.fromarray(_input_of(item)) for item in items]}

    def held(self, items: Sequence[Item], **call: object) -> list[Item]:
        """As `TextToImage.held`: the inputs too, at the size of the call."""
        return [self.read(item, self.size(call)) for item in items]

    def read(self, item: Item, size: tuple[int, int]) -> Item:
        """An item whose input is in memory, at a size that is given as height and width.

        Raises:
            DataError: it has none.
        """
        found = fitted(_input_of(item), *size)
        return replace(item, input=lambda: found)

    def call(self, items: Sequence[Item], generators: list[torch.Generator], output: str, arguments: Call) -> Any:
        """As `TextToImage.call`."""
        return super().call(self.held(items, **arguments), generators, output, self.prepared(arguments))

    def prepared(self, arguments: Call) -> Call:
        """The arguments as the pipeline takes them. So few steps that none would run at this strength become as many as run one: where a
        recipe asks for so few, the plan refuses it, and whoever looks at the parts alone wants to see them called."""
        found = {name: value for name, value in arguments.items() if name not in SIDES}
        if isinstance(steps := found.get(STEPS), int):
            found[STEPS] = max(steps, self.asking(1, found))
        return found | self.sized(self.size(arguments))

    def sized(self, size: tuple[int, int]) -> Call:
        """The arguments that tell the pipeline the size of what it is given, where it takes them."""
        return {side: pixels for side, pixels in zip(SIDES, size, strict=True) if side in self.takes}


def _input_of(item: Item) -> NDArray[np.uint8]:
    if item.input is None:
        message = "has no image that another could be made of"
        raise DataError(message, place=item.id, fix="give data with input_file_name; `pare explain data` tells all")
    return item.input()


def _waves(height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: one way for each colour, and across for the last."""
    down, across = (np.linspace(0, 2 * np.pi * PERIODS, side, endpoint=False) for side in (height, width))
    waves = np.stack(
        np.broadcast_arrays(np.sin(down)[:, None], np.sin(across)[None, :], np.sin(down[:, None] + across)), -1
    )
    return np.round(127.5 + 100 * waves).astype(np.uint8)
