"""`digits-reader`: the independent classifier that reads the generated scenes. A plain convolutional network with five slots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from compress.algorithms.tensors import to_array
from compress.data.items import Item
from compress.errors import DataError
from compress.files.hashing import digest_folder
from compress.machine.devices import CPU
from compress.zoo import MODELS, new_ink, scenes
from evaluation.values import Sample

FOLDER = MODELS / "digits-reader"
NOTHING_DIGIT, NOTHING_INK = len(scenes.WORDS), len(scenes.INKS)
INKS_AND_NONE = (*scenes.INKS, "")
BATCH = 64


@cache
def weights() -> str:
    """Digest of the classifier's weights: marks of other weights are not compared."""
    return digest_folder(FOLDER)


class Generated(Protocol):
    """What of an evaluation's evidence the reader looks at."""

    @property
    def items(self) -> Sequence[Item]: ...

    @property
    def unit_ids(self) -> tuple[str, ...]: ...

    def images(self, start: int, stop: int) -> NDArray[np.uint8]: ...


class Network(nn.Module):
    """[n, 3, 64, 64] in −1..1 to digit logits [n, 5, 11] and ink logits [n, 5, 7]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(4, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(widths[-1] * 16, 192)
        self.digits = nn.Linear(192, len(scenes.SLOTS) * (NOTHING_DIGIT + 1))
        self.inks = nn.Linear(192, len(scenes.SLOTS) * (NOTHING_INK + 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = nn.functional.silu(self.hidden(self.body(pixels)))
        return self.digits(found).view(len(pixels), len(scenes.SLOTS), -1), self.inks(found).view(
            len(pixels), len(scenes.SLOTS), -1
        )


@dataclass(frozen=True)
class Reader:
    network: Network

    def read(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """uint8 [n, 64, 64, 3] to digits and inks [n, 5], one for each slot; the last class is "nothing there"."""
        digits, inks = [], []
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                one, other = self.network(pixels)
            digits.append(to_array(one.argmax(-1)))
            inks.append(to_array(other.argmax(-1)))
        return np.concatenate(digits), np.concatenate(inks)


@cache
def load_reader() -> Reader:
    """The shipped reader."""
    config = json.loads((FOLDER / "config.json").read_text())
    with torch.device(CPU):  # images are small, and so is the network: wherever the models run, it reads here
        network = Network(config["width"])
    network.load_state_dict({k: v.float() for k, v in load_file(FOLDER / "model.safetensors").items()})
    return Reader(network.eval())


def marks(captions: Sequence[str], images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each image the share of its digits read right, and of its inks right, each in the place asked for. The network knows the six inks of
    zoo://digits: where a caption asks for another, all of its inks are read off the colour of the strokes.

    Raises:
        DataError: a caption is not in the grammar of zoo://digits.
    """
    digits, inks = load_reader().read(images)
    shares = []
    for caption, image, read_digits, read_inks in zip(captions, images, digits, inks, strict=True):
        try:
            layout, things, paper = scenes.parse(caption)
        except ValueError as error:
            raise DataError(
                str(error), fix="digits_read and inks_right are for zoo://digits only; remove them"
            ) from error
        slots = [scenes.SLOTS.index(place) for place in scenes.PLACES[layout]]
        coloured = (
            new_ink.inks_by_colour(image, layout, paper)
            if new_ink.has_new_ink(caption)
            else tuple(INKS_AND_NONE[read_inks[s]] for s in slots)
        )
        right = [
            (read_digits[s] == value, found == ink)
            for s, found, (value, ink) in zip(slots, coloured, things, strict=True)
        ]
        shares.append(np.mean(right, axis=0))
    found = np.array(shares, dtype=np.float64)
    return found[:, 0], found[:, 1]


def shown(item: Item) -> str:
    """What an item's image is to show: its text, or where that is an instruction, the caption of what follows it."""
    return item.text if scenes.is_scene(item.text) else item.after or item.text


def marks_of(evidence: Generated) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`marks` of all that one side generated, a batch at a time."""
    parts = []
    for start in range(0, len(evidence.items), BATCH):
        items = evidence.items[start : start + BATCH]
        parts.append(marks([shown(item) for item in items], evidence.images(start, start + BATCH)))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def share_read(evidence: Generated, which: Literal["digits", "inks"]) -> Sample:
    """The share of an image's digits, or of its inks, that is right [units].

    Raises:
        DataError: a caption is not in the grammar of zoo://digits.
    """
    found = marks_of(evidence)[("digits", "inks").index(which)]
    protocol = {"reader": "digits-reader", "weights": weights()}
    if which == "inks" and any(new_ink.has_new_ink(shown(item)) for item in evidence.items):
        protocol["new inks"] = f"by the colour of strokes, v{new_ink.VERSION}"
    return Sample(evidence.unit_ids, np.asarray(found, dtype=np.float64), protocol=protocol)
