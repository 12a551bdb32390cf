"""A side's images beside the original's own, for metrics that ask how much of them is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compress.errors import StageFailed
from evaluation.evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

Image: TypeAlias = "NDArray[np.uint8]"


def image_pairs(evidence: Evidence) -> Iterator[tuple[Image, Image]]:
    """For each item the original's image and this side's, uint8 [height, width, 3], read one pair at a time.

    Raises:
        StageFailed: the two are of different sizes.
        ValueError: a side generated nothing, or this side is the original.
    """
    if evidence.original is None or evidence.original.image is None or evidence.image is None:
        raise ValueError("there are no two images of an item")
    for index, item in enumerate(evidence.items):
        one, other = evidence.original.image(index), evidence.image(index)
        if one.shape != other.shape:
            raise StageFailed(
                f"the original generates {_size(one)} pixels and the candidate {_size(other)}",
                place=item.id,
                fix="let both generate one size, or drop the metrics that hold an image against the original's own",
            )
        yield one, other


def _size(image: Image) -> str:
    return f"{image.shape[1]} × {image.shape[0]}"
