"""A side's pictures beside the original's own, for metrics that ask how much of them is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compress.errors import StageFailed
from evaluation.evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

Picture: TypeAlias = "NDArray[np.uint8]"


def picture_pairs(evidence: Evidence) -> Iterator[tuple[Picture, Picture]]:
    """For each item the original's picture and this side's, uint8 [height, width, 3], read one pair at a time.

    Raises:
        StageFailed: the two are of different sizes.
        ValueError: a side painted nothing, or this side is the original.
    """
    if evidence.original is None or evidence.original.picture is None or evidence.picture is None:
        raise ValueError("there are no two pictures of an item")
    for index, item in enumerate(evidence.items):
        one, other = evidence.original.picture(index), evidence.picture(index)
        if one.shape != other.shape:
            raise StageFailed(
                f"the original paints {_size(one)} pixels and the candidate {_size(other)}",
                place=item.id,
                fix="let both paint one size, or drop the metrics that hold a picture against the original's own",
            )
        yield one, other


def _size(picture: Picture) -> str:
    return f"{picture.shape[1]} × {picture.shape[0]}"
