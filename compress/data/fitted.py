"""Images of any size as a model is given them: the largest part about the middle that has the shape asked for, resized to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fitted(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An image as one of this size, uint8 [height, width, 3], by Lanczos, as diffusers resizes; the very same where it has that size."""
    import numpy as np
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize(
        (width, height), Image.Resampling.LANCZOS, box=_middle(image, height, width)
    )
    return np.asarray(resized, dtype=np.uint8)


def fitted_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """The same of a mask, bool [height, width]: each pixel is as the one nearest to its middle."""
    import numpy as np
    from PIL import Image

    if mask.shape == (height, width):
        return mask
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = whole.resize((width, height), Image.Resampling.NEAREST, box=_middle(mask, height, width))
    return np.asarray(resized) > 127


def mask_fault(mask: NDArray[np.bool_], height: int, width: int) -> str:
    """Why a mask says nothing at this size, in words; "" where it does."""
    found = fitted_mask(mask, height, width)
    if found.any() and not found.all():
        return ""
    what = "all of it" if found.all() else "nothing"
    return f"at {width} × {height} pixels, to which inputs and masks are cut about their middle, leaves {what} to be inpainted"


def _middle(image: NDArray[np.uint8] | NDArray[np.bool_], height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest part about the middle that has the shape asked for."""
    tall, wide = image.shape[:2]
    scale = min(tall / height, wide / width)
    left, top = (wide - width * scale) / 2, (tall - height * scale) / 2
    return left, top, left + width * scale, top + height * scale
