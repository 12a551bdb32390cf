"""One careful reader for every image a user hands over, as every viewer shows it: uint8 [height, width, 3].

Depths beyond 8 bits are scaled and never clipped, EXIF orientation is applied, transparent pixels are laid onto white. A file with
several frames, numbers without a range, or something that is no image is refused with its name. Plain 8-bit files are as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import DataError
from compress.files.lfs_pointers import refuse_pointer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

READER = 2  # what is kept of files that were read is kept under this number: raise it where a file is read otherwise
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # wherever a folder of images is given
# The first bytes of the formats that are read, so that a plan can tell an image without decoding it.
STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
DEEP = 65535 // 255  # 16 bits to 8: 257
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the tag of EXIF, and those of its values that swap the sides
SAVE = "save it as an 8-bit PNG or JPEG"


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image's pixels.

    Raises:
        DataError: it is no image, is cut short, holds several frames, or numbers whose range nobody knows.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            frames = int(getattr(opened, "n_frames", 1))
            if frames > 1 and opened.format != "MPO":  # whose further frames are previews
                raise DataError(f"holds {frames} frames", place=str(path), fix="save the one that is meant as a PNG")
            image = ImageOps.exif_transpose(opened)
            return np.asarray(_plain(image, path), dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise DataError("is no image that reads", place=str(path), fix=SAVE) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        message, fix = f"is no image that reads: {error}", "mend or remove it"
        raise DataError(message, place=str(path), fix=fix) from error


def refuse_other(path: Path) -> None:
    """Raises a DataError where a file's header is of no format that is read: the common ones are known without a library."""
    refuse_pointer(path, DataError)
    with path.open("rb") as stream:
        start = stream.read(12)
    if not start.startswith(STARTS) and not (start[:4] == b"RIFF" and start[8:] == b"WEBP") and not _opens(path):
        raise DataError("is no image", place=str(path), fix=SAVE)


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image as it is shown, from its header.

    Raises:
        DataError: it does not read so far.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            wide, tall = opened.size
            turned = opened.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (wide, tall) if turned else (tall, wide)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"is no image that reads: {error}", place=str(path), fix="mend or remove it") from error


def _opens(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True  # it is one, and too large: whoever reads it says so
    except (OSError, SyntaxError, ValueError):
        return False


def _plain(image: Image, path: Path) -> Image | NDArray[Any]:
    """Eight bits of red, green and blue."""
    import numpy as np

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"holds whole numbers up to {values.max()} (mode {image.mode})", place=str(path), fix=SAVE)
        return np.repeat(((values + DEEP // 2) // DEEP)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError("holds decimal numbers (mode F), whose range nobody knows", place=str(path), fix=SAVE)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _onto_white(image)
    return image.convert("RGB")


def _onto_white(image: Image) -> Image:
    from PIL import Image as library  # noqa: N813 - the type above is the class in this module

    seen = image.convert("RGBA")
    white = library.new("RGBA", seen.size, "white")
    return library.alpha_composite(white, seen).convert("RGB")
