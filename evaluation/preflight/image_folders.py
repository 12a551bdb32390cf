"""A folder of images as one side of a comparison: what some model generated, wherever it ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.artifact import Artifact
from compress.data.images import SUFFIXES, read_image
from compress.data.items import Data, Item
from compress.endpoints.served import Served
from compress.errors import DataError, UserError
from compress.files.hashing import digest_file, digest_json, list_files
from compress.sources.data import open_data
from compress.sources.units import ID, TEXT, distinct
from evaluation.evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

OTHER_SUFFIXES = (
    ".heic",
    ".heif",
    ".avif",
    ".gif",
    ".jxl",
    ".jp2",
    ".exr",
    ".psd",
    ".svg",
    ".dng",
    ".ppm",
    ".tga",
    ".npy",
)
SHOWN = frozenset({"images", "captions", "scenes"})  # what such a folder can show, with its captions
MODEL_FILES = ("pare.json", "model_index.json", "config.json")


def files_of(folder: Path) -> tuple[Path, ...]:
    """Its images and those of the folders in it, by name."""
    return tuple(folder / name for name in list_files(folder) if Path(name).suffix.lower() in SUFFIXES)


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def is_generated(folder: Path) -> bool:
    """Whether a folder holds images and no model."""
    return folder.is_dir() and not any((folder / name).is_file() for name in MODEL_FILES) and bool(files_of(folder))


def is_folder(artifact: Artifact) -> bool:
    """Whether a side is a folder of images: nothing that can be run, and nothing that a server runs."""
    return not artifact.components and not isinstance(artifact, Served)


def describe_generated(folder: Path, task: str) -> Artifact:
    """The folder as an artifact without components: it can be looked at, and not run. What it is an image of is another side's task."""
    digest = digest_json([[_name(f, folder), digest_file(f)] for f in files_of(folder)])
    return Artifact(folder, task, {}, digest=digest)


def captions_of(folder: Path) -> Data:
    """The folder's own items: the rows of its `metadata.jsonl`, else its files by name, without captions.

    No item has a real image: those in the folder were generated.
    """
    if (folder / "metadata.jsonl").is_file():
        found = open_data(str(folder), Path())
        return replace(found, read=lambda index: replace(found.read(index), image=None))
    names = [_name(f, folder) for f in files_of(folder)]
    rows = tuple((name, "", digest_file(folder / name)) for name in names)
    return Data(
        str(folder), "captioned_images", digest_json(names), len(names), lambda i: Item(names[i], ""), rows=rows
    )


def captions_of_both(one: Path, other: Path) -> tuple[Data, Data]:
    """As `captions_of`, of two folders that are compared with each other. Where all their items are the same, those that neither
    folder tells apart count once.

    Raises:
        DataError: a name stands for two items.
    """
    found = captions_of(one), captions_of(other)
    ids = [[row[ID] for row in data.rows] for data in found]
    if ids[0] != ids[1]:
        return found
    seen = [row + beside[TEXT:] for row, beside in zip(found[0].rows, found[1].rows, strict=True)]
    return distinct(replace(found[0], rows=tuple(seen))), distinct(replace(found[1], rows=tuple(seen)))


def ill_paired(one: Path, other: Path) -> str:
    """What is not alike in two folders whose images are compared with each other by their names, in words; "" where all is."""
    found = captions_of(one), captions_of(other)
    texts = [{row[ID]: row[TEXT].strip() for row in data.rows} for data in found]
    shared = [name for name in texts[0] if name in texts[1]]
    other_words = [name for name in shared if texts[0][name] != texts[1][name]]
    counts = [data.count for data in found]
    message = [f"they hold {counts[0]} and {counts[1]}"] if counts[0] != counts[1] else []
    if other_words:
        message.append(f"{len(other_words)} of {len(shared)} have other captions there, the first {other_words[0]}")
    return f"the images of two folders are paired by file name, and {' and '.join(message)}" if message else ""


def images_for(folder: Path, items: Sequence[Item]) -> tuple[Path, ...]:
    """The file of each item: its own where it is of this folder's images, else the one whose path in the folder is its id, with or
    without the suffix.

    Raises:
        DataError: an item has none.
    """
    known = {key: f for f in files_of(folder) for key in (_name(f, folder), _name(f.with_suffix(""), folder))}
    names = [item.id if item.image else item.file or item.id for item in items]
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(
            f"holds no image for {missing[0]!r}" + (f" and {len(missing) - 1} more items" if missing[1:] else ""),
            place=str(folder),
            fix="name each file as its item's id, or leave out --data (data= in Python)",
        )
    return tuple(known[name] for name in names)


def read_generated(file: Path, side: str) -> NDArray[np.uint8]:
    """An image that a side shows, uint8 [height, width, 3].

    Raises:
        DataError: it does not read, or is of one value throughout.
    """
    found = read_image(file)
    if found.min() == found.max():
        raise DataError(f"the {side} holds a constant image", place=str(file), fix="generate it again")
    return found


def check_metrics(metrics: Sequence[tuple[str, frozenset[str]]]) -> None:
    """Refuse what images alone cannot tell.

    Args:
        metrics: names, and what each needs.

    Raises:
        UserError: a metric needs more than images.
    """
    for name, needs in metrics:
        if needs - SHOWN:
            raise UserError(
                f"{name} needs a model, and one side is a folder of images",
                fix="drop it from --metrics (metrics= in Python), or give two models",
            )


def refuse_uncaptioned(evidence: Evidence, metric: str) -> None:
    """Raises a UserError where an image has no caption, which a plan cannot tell of two folders."""
    if not all(item.text for item in evidence.items):
        raise UserError(
            f"{metric} needs a caption for each image",
            place=str(evidence.artifact.path),
            fix="give --data, or put metadata.jsonl with file_name and text beside the images",
        )
