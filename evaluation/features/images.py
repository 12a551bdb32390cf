"""Both sets of a distribution metric: features of what was generated, and of what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.images import READER, SUFFIXES, read_image
from compress.errors import DataError, UserError
from compress.events import Emit, Event, silent
from compress.files.hashing import digest_file, digest_json
from compress.files.user_paths import expanded
from compress.sources.data import open_data
from compress.sources.units import IMAGE, firsts
from evaluation.evidence import Evidence
from evaluation.features.extractor import Extractor
from evaluation.features.feature_cache import Features, remembered
from evaluation.features.opening import open_features
from evaluation.features.statistics import export, read_statistics
from evaluation.preflight.image_checks import Images, refuse_damaged
from evaluation.preflight.image_folders import files_of
from evaluation.values import OWN_REFERENCE, Sample

Read = Callable[[], NDArray[np.uint8]]


def against_real(evidence: Evidence, features: str, resize: str = "pil", reference: str = "") -> Sample:
    """Sample with `values` float32 [n, d] of the generated images, and `reference` float32 [m, d] or `moments`.

    They are compared with the real images of the same items; where an item has none, against what the original generated.

    Args:
        features, resize: the extractor, and how images are brought to its size.
        reference: a folder of images to compare them with instead, or an `.npz` file of mu and sigma: then only the
            Sample's `moments` are known.

    Raises:
        UserError: the extractor or the reference does not read.
    """
    extractor = open_features(features, resize)
    values = generated(evidence, extractor)
    protocol = protocol_of(extractor)
    if not reference:
        found, whose = _own_reference(evidence, extractor, values)
        return Sample(evidence.unit_ids, values, found, protocol=protocol | {"reference": whose})
    path = expanded(reference)
    if path.is_dir():
        files, digest, left_out = _folder(path)
        found = _of_folder(files, digest, extractor, evidence.memory)
        message = {"reference": f"{len(files)} images {digest[:12]}"}
        return Sample(evidence.unit_ids, values, found, protocol=protocol | message, left_out=left_out)
    moments = read_statistics(path, values.shape[1])
    message = {"reference": f"statistics {digest_file(path)[:12]}"}
    return Sample(evidence.unit_ids, values, moments=moments, protocol=protocol | message)


def generated(evidence: Evidence, extractor: Extractor) -> Features:
    """Features of the images that this side generated, float32 [n, d]."""
    count = len(evidence.items)
    reads = [partial(_generated, evidence, index) for index in range(count)]
    return remembered(evidence.memory, extractor, evidence.key, count, lambda: extract(extractor, reads))


def protocol_of(extractor: Extractor) -> dict[str, str | int | float]:
    """What decides a score beside the images."""
    return {"features": extractor.name, "weights": extractor.digest, "resize": extractor.resize}


def export_reference(source: str, features: str, resize: str, out: Path, count: int = 0, emit: Emit = silent) -> int:
    """Write mu and sigma of the features of real images as `.npz`, and say of how many. Copies count once.

    Args:
        source: a folder of images, or data that `compress.sources.data.open_data` knows, such as zoo://digits/test.
        count: of the first images; 0: of all.

    Raises:
        UserError: there are fewer than two images, no end of them, or one does not read.
    """
    extractor = open_features(features, resize)
    folder = expanded(source)
    reads, left_out = _reads_of(folder) if folder.is_dir() else _of_data(source, count)
    if left_out:
        emit(Event("warning", "reference", left_out))
    reads = reads[: count or len(reads)]
    if len(reads) < 2:
        raise DataError(f"{len(reads)} images have no covariance", place=source, fix="give more")
    refuse_damaged([Images("", tuple(reads))], emit=emit)
    export(out, extract(extractor, reads))
    return len(reads)


def _own_reference(evidence: Evidence, extractor: Extractor, values: Features) -> tuple[Features, str]:
    """The items' real images if all have one, else what the original generated, which this side may itself be. An image with several
    captions counts once, and then none belongs to one item."""
    real = [item.image for item in evidence.items if item.image]
    units = evidence.items[:: evidence.each]
    once = firsts(item.file or item.id for item in units)
    if len(real) == len(evidence.items) and len(once) < len(units):
        reads = [real[index * evidence.each] for index in once]
        found = remembered(evidence.memory, extractor, evidence.data_key, len(reads), lambda: extract(extractor, reads))
        return found, f"the data's {len(reads)} images"
    if len(real) == len(evidence.items):
        return remembered(
            evidence.memory, extractor, evidence.data_key, len(real), lambda: extract(extractor, real)
        ), "the data's images"
    found = generated(evidence.original, extractor) if evidence.original else values
    return found, OWN_REFERENCE


def _of_folder(files: Sequence[Path], digest: str, extractor: Extractor, memory: Path | None) -> Features:
    reads = [partial(read_image, file) for file in files]
    return remembered(memory, extractor, digest_json([READER, digest]), len(files), lambda: extract(extractor, reads))


def _folder(path: Path) -> tuple[list[Path], str, str]:
    """The images below a folder in sorted order, the digest of their contents in that order, and in words which copies of
    others are not among them."""
    files = list(files_of(path))
    if not files:
        raise DataError("holds no images", place=str(path), fix=f"files ending in {', '.join(SUFFIXES)}")
    digests = [digest_file(f) for f in files]
    kept = firsts(digests)
    message = f"{len(kept)} of {len(files)} images in {path} count: the others are copies"
    return [files[i] for i in kept], digest_json([digests[i] for i in kept]), message if len(kept) < len(files) else ""


def _reads_of(folder: Path) -> tuple[list[Read], str]:
    files, _, left_out = _folder(folder)
    return [partial(read_image, file) for file in files], left_out


def _of_data(source: str, count: int) -> tuple[list[Read], str]:
    data = open_data(source, Path())
    if data.count < 0 and not count:
        raise UserError("gives as many images as one wants", place=source, fix="say how many")
    items = data.first(count or data.count)
    reads = [item.image for item in items if item.image]
    if len(reads) < len(items):
        raise DataError("has items without an image", place=source, fix="give data of images, or a folder of them")
    kept = firsts(row[IMAGE] for row in data.rows[: len(items)]) if data.rows else range(len(items))
    message = f"{len(kept)} of {len(items)} images in {source} count: the others are copies"
    return [reads[i] for i in kept], message if len(kept) < len(items) else ""


def extract(extractor: Extractor, reads: Sequence[Read]) -> Features:
    """Features of the images, each read when its batch is due."""

    def one_by_one() -> Iterator[list[NDArray[np.uint8]]]:
        for read in reads:
            yield [read()]

    return extractor.images(one_by_one())


def _generated(evidence: Evidence, index: int) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = evidence.images(index, index + 1)[0]
    return image
