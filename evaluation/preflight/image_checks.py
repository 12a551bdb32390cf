"""Images that will be read, read once before anything runs: what is damaged behind a whole header is reported with all others like it,
and before the minutes that it would cost. What was read whole is remembered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.catalogue import find_metric
from compress.data.animation import has_several_frames
from compress.data.fitted import mask_fault
from compress.data.images import READER, read_image, size_of
from compress.data.items import Data, Item
from compress.errors import DamagedImages, DataError, Problem
from compress.events import Emit, silent, track
from compress.files.hashing import digest_json, identity, touch
from compress.files.user_paths import expanded
from evaluation.preflight.image_folders import files_of, images_for, read_generated
from evaluation.preflight.references import AgainstReal

if TYPE_CHECKING:
    from compress.planning.nodes import Node
    from compress.recipe.values import Recipe

THREADS = min(8, os.cpu_count() or 1)  # the libraries that decode let go of Python's lock
Read = Callable[[], object]


@dataclass(frozen=True)
class Images:
    """Images that are read together. content: stands for all of their bytes."""

    content: str
    reads: tuple[Read, ...]


def of_files(files: Sequence[Path], read: Callable[[Path], object] = read_image) -> Images:
    """Files, each as it is now."""
    content = digest_json([[str(f), *identity(f)] for f in files])
    return Images(content, tuple(partial(read, f) for f in files))


def frames(recipe: Recipe, nodes: Iterable[Node], data: Mapping[str, Data]) -> Iterator[Problem]:
    """Images that a plan will read and whose headers tell several frames, each by its data's place."""
    spec, evaluated = recipe.evaluate, data.get("evaluate")
    read = {"evaluate": spec.samples if _own_images(spec.metrics) and evaluated else 0, "train": _learnt(nodes)}
    for role, found in data.items():
        if found.folder is not None:
            most = read.get(role, 0)
            names = [item.file for item in found.first(most) if item.file]
            names += [
                name for item in found.first(found.count if role != "evaluate" else spec.samples) for name in item.given
            ]
            yield from _several(found.folder, names, recipe.place.get(f"data.{role}", ""))


def masks(data: Data, most: int, sizes: Iterable[tuple[int, int]]) -> Iterator[Problem]:
    """The first mask that says nothing at a size, given as height and width, that the items are brought to, and how many more there are."""
    if data.kind != "masked_images" or data.count < 0:  # the zoo's are made as they are asked for
        return
    found = []
    for index, item in enumerate(data.first(most)):
        with suppress(DataError):  # a damaged file is reported with all others like it
            cut = [size for size in sizes if not _of_shape(data, item, size)]
            mask = item.mask() if cut and item.mask else None
            if mask is not None and (why := next(filter(None, (mask_fault(mask, *size) for size in cut)), "")):
                found.append((index, why))
    if found:
        (first, why), more = found[0], len(found) - 1
        fix = "give a mask within the middle, or a size of the input's shape: evaluate.baseline.height and width"
        yield Problem(data.place(first), f"the mask {why}" + (f"; so do {more} more" if more else ""), fix)


def _of_shape(data: Data, item: Item, size: tuple[int, int]) -> bool:
    """Whether an item's mask has the very shape of a size by its header, so that nothing of it is cut away."""
    if data.folder is None or not item.mask_file:
        return False
    tall, wide = size_of(data.folder / item.mask_file)
    return tall * size[1] == wide * size[0] and tall <= size[0]


def _several(folder: Path, names: Iterable[str], place: str) -> Iterator[Problem]:
    for name in dict.fromkeys(names):
        if has_several_frames(folder / name):
            yield Problem(place, f"{folder / name} holds several frames", "save the one that is meant as a PNG")


def _own_images(metrics: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a metric compares what is generated with the items' own images."""
    asked = (find_metric(name).params(**values) for name, values in metrics.items())
    return any(isinstance(one, AgainstReal) and not one.reference for one in asked)


def _learnt(nodes: Iterable[Node]) -> int:
    """How many items' images stages still to run read."""
    return max((node.stage.images(node.params) for node in nodes if not node.cached), default=0)


def to_be_read(metrics: Mapping[str, Mapping[str, Any]], data: Data | None, samples: int) -> Iterator[Images]:
    """The real images that these metrics compare what is generated with: their references, and where one has none, the items' own; and
    those that the model is given."""
    asked = (find_metric(name).params(**values) for name, values in metrics.items())
    for reference in dict.fromkeys(str(one.reference) for one in asked if isinstance(one, AgainstReal)):
        folder = expanded(reference)
        if reference and folder.is_dir():
            yield of_files(files_of(folder))
        elif not reference and data is not None and data.count >= 0:
            yield _of_items(data, samples)
    if data is not None and data.count >= 0:
        given = {name: read for item in data.first(samples) for name, read in item.given.items()}
        if given:
            yield Images(digest_json([data.digest, len(given), "given"]), tuple(given.values()))


def to_be_learnt(nodes: Iterable[Node], data: Data | None) -> Iterator[Images]:
    """The training data's images that stages still to run read."""
    most = _learnt(nodes)
    if most and data is not None and data.count >= 0:
        yield _of_items(data, most)


def _of_items(data: Data, most: int) -> Images:
    items = data.first(most)
    reads = {item.file: item.image for item in items if item.file and item.image}  # the zoo's are no files
    return Images(digest_json([data.digest, len(items)]), tuple(reads.values()))


def generated(folder: Path, items: Sequence[Item], side: str) -> Images:
    """What a side that is a folder of images shows of these items.

    Raises:
        DataError: an item has no image.
    """
    return of_files(images_for(folder, items), partial(read_generated, side=side))


def refuse_damaged(found: Iterable[Images], memory: Path | None = None, emit: Emit = silent) -> None:
    """Read images, but for those that were read before.

    Args:
        memory: the folder where it is noted that they read.

    Raises:
        DamagedImages: some do not read.
    """
    problems: list[Problem] = []
    for images in found:
        note = memory / digest_json(["read", READER, images.content]) if memory and images.reads else None
        if note and note.is_file():
            touch(note)
            continue
        damaged = _damaged(images, emit)
        if note and note.parent.is_dir() and not damaged:
            note.touch()
        problems += damaged
    if problems:
        raise DamagedImages(tuple(dict.fromkeys(problems)))


def _damaged(images: Images, emit: Emit) -> list[Problem]:
    with ThreadPoolExecutor(THREADS) as threads:
        reported = threads.map(_problems, images.reads)
        return [p for those in track(reported, emit, "looking at the real images", len(images.reads)) for p in those]


def _problems(read: Read) -> tuple[Problem, ...]:
    try:
        read()
    except DataError as error:
        return error.problems
    return ()
