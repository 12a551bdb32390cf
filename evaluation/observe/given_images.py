"""What a side's images were made of: inputs and masks at the size of what was generated, as the pipeline was given them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from compress.data.fitted import fitted, fitted_mask
from evaluation.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Image: TypeAlias = "NDArray[np.uint8]"
Mask: TypeAlias = "NDArray[np.bool_]"


def input_of(evidence: Evidence, index: int, like: Image) -> Image:
    """The input of an item, uint8 [height, width, 3] of the size of an image.

    Raises:
        ValueError: it has none.
    """
    read = evidence.items[index].input
    if read is None:
        raise ValueError("this item was made of no image")
    return fitted(read(), *like.shape[:2])


def mask_of(evidence: Evidence, index: int, like: Image) -> Mask:
    """The mask of an item, bool [height, width] of the size of an image: where it was inpainted.

    Raises:
        ValueError: it has none.
    """
    read = evidence.items[index].mask
    if read is None:
        raise ValueError("this item has no mask")
    return fitted_mask(read(), *like.shape[:2])


def edited(evidence: Evidence) -> Iterator[tuple[Image, Image]]:
    """For each item its input and what this side made of it, of one size, read one pair at a time.

    Raises:
        ValueError: this side generated nothing, or an item has no input.
    """
    for index in range(len(evidence.items)):
        (made,) = evidence.images(index, index + 1)
        yield input_of(evidence, index, made), made
