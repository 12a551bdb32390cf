"""What `preprocessor_config.json` says of the images a vision model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.artifact import read_json
from compress.errors import ModelError
from evaluation.features.resizing import Fit

NAME = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """size: edge of the square that the model sees, pixels. mean, std: of red, green and blue, in 0..1."""

    size: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_preprocessing(folder: Path, usual: Preprocessing) -> Preprocessing:
    """What the folder's file says, and for what it leaves out `usual`.

    A size of height and width without a crop means the whole image, squeezed. Where the file first makes the shorter edge
    longer than the crop (DINOv2: 256, then 224), the edge is fitted to the crop instead: an evaluation looks at all it can.

    Raises:
        ModelError: the file is no such description.
    """
    if not (folder / NAME).is_file():
        return usual
    message: dict[str, Any] = read_json(folder / NAME)
    try:
        crop = bool(message.get("do_center_crop", usual.fit == "crop"))
        size = _edge(message.get("crop_size" if crop else "size"), usual.size)
        squeezed = not crop and isinstance(message.get("size"), dict) and "height" in message["size"]
        plain = not message.get("do_normalize", True)
        mean = (0.0,) * 3 if plain else _three(message.get("image_mean", usual.mean))
        std = (1.0,) * 3 if plain else _three(message.get("image_std", usual.std))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"is no description of images: {error}", place=str(folder / NAME), fix="fetch or save it again"
        ) from error
    return Preprocessing(size, "squash" if squeezed else "crop", mean, std)


def _edge(message: int | Mapping[str, int] | None, usual: int) -> int:
    """24, {"height": 24, "width": 24} or {"shortest_edge": 24} to 24."""
    if message is None:
        return usual
    if isinstance(message, Mapping):
        message = message["shortest_edge"] if "shortest_edge" in message else message["height"]
    return int(message)


def _three(values: Sequence[float]) -> tuple[float, ...]:
    if len(values) != 3:
        raise ValueError(f"{len(values)} numbers where red, green and blue need three")
    return tuple(float(v) for v in values)
