"""What a row of an image folder's metadata has beside image and text, where a model is given an image: the columns `input_file_name` (or
`source_file_name`) and `mask_file_name`, as Hugging Face's imagefolder names them, and captions of what is there before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.data.images import read_image, refuse_other, size_of
from compress.data.items import Kind
from compress.errors import DataError
from compress.files.known_files import Looking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INPUT, MASK = ("input_file_name", "source_file_name"), ("mask_file_name",)
BEFORE, AFTER = "input_text", "edited_text"
HALF = 127.5  # what is brighter is inpainted, as diffusers' pipelines take it
SHAPES: Mapping[Kind, str] = {
    "image_edits": '{"file_name": "0.png", "input_file_name": "0-input.png", "text": "…"}',
    "masked_images": '{"file_name": "0.png", "input_file_name": "0-input.png", "mask_file_name": "0-mask.png", "text": "…"}',
}


@dataclass(frozen=True)
class Edit:
    """Files of a row in its folder, their digests, and its captions; "" for what it has not."""

    input: str
    input_digest: str
    mask: str = ""
    mask_digest: str = ""
    before: str = ""
    after: str = ""

    @property
    def content(self) -> tuple[str, ...]:
        """What decides it, whatever its files are called."""
        return self.input_digest, self.mask_digest, self.before, self.after


def edit_of(row: Mapping[str, Any], kind: Kind, folder: Path, place: str, digest: Looking) -> Edit | None:
    """What a row has of an edit; None where data of this kind have none.

    Raises:
        DataError: a column is lacking or names no image that reads, or the mask is of another size than the input, or says nothing.
    """
    if kind not in SHAPES:
        return None
    input_file = _named(row, INPUT, kind, folder, place)
    try:
        input_digest = digest(input_file, lambda: refuse_other(folder / input_file))
    except DataError as error:
        raise _at(place, input_file, error) from error
    texts = [_text(row, key, place) for key in (BEFORE, AFTER)]
    if kind != "masked_images":
        return Edit(input_file, input_digest, before=texts[0], after=texts[1])
    mask_file = _named(row, MASK, kind, folder, place)
    try:
        # By a name of its own: a file may be looked at as an image elsewhere, and would be known; and its size is that of this very input.
        look = partial(_look_at_mask, folder, mask_file, input_file)
        mask_digest = digest(mask_file, look, role=f"mask of {input_digest}")
    except DataError as error:
        raise _at(place, mask_file, error) from error
    return Edit(input_file, input_digest, mask_file, mask_digest, *texts)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where an image is inpainted, bool [height, width]: where its mask is bright.

    Raises:
        DataError: as `read_image`.
    """
    found: NDArray[np.bool_] = read_image(path).mean(axis=2) > HALF
    return found


def _named(row: Mapping[str, Any], keys: tuple[str, ...], kind: Kind, folder: Path, place: str) -> str:
    """The file that a column names."""
    given = [key for key in keys if row.get(key) is not None]
    if len(given) > 1:
        raise DataError(f"has {' and '.join(given)}, which are the same", place=place, fix=f"leave out {given[1]}")
    name = row[given[0]] if given else None
    if name is None:
        raise DataError(f"needs {keys[0]}", place=place, fix=SHAPES[kind])
    if not isinstance(name, str) or not name or not (folder / name).is_file():
        message = f"{given[0]} is {name!r}, and no file in this folder"
        raise DataError(message, place=place, fix=SHAPES[kind])
    return name


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    text = row.get(key)
    if text is not None and not isinstance(text, str):
        raise DataError(f"{key} is a {type(text).__name__}", place=place, fix=f'"{key}": "…", or leave it out')
    return text or ""


def _look_at_mask(folder: Path, name: str, image: str) -> None:
    """Raises a DataError where a mask is no image, the same everywhere, or of another size than its image."""
    refuse_other(folder / name)
    mask = read_mask(folder / name)
    if mask.all() or not mask.any():
        what = "is white throughout: all would be inpainted" if mask.all() else "is black throughout: nothing would be"
        raise DataError(what, place=str(folder / name), fix="give a mask that is white where the image is inpainted")
    _be_of_one_size(folder, image, name)


def _be_of_one_size(folder: Path, image: str, mask: str) -> None:
    sizes = [size_of(folder / name) for name in (image, mask)]
    if sizes[0] != sizes[1]:
        (tall, wide), (mask_tall, mask_wide) = sizes
        message = f"is {mask_wide} × {mask_tall} pixels, and {image} {wide} × {tall}"
        raise DataError(message, place=str(folder / mask), fix="give a mask of its image's size")


def _at(place: str, name: str, error: DataError) -> DataError:
    wrong = error.problems[0]
    return DataError(f"{name} {wrong.message}", place=place, fix=wrong.fix)
