"""Both sets of a distribution metric: features of what was painted, and of what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.images import READER, read_picture
from compress.errors import DataError, UserError
from compress.events import Emit, Event, silent
from compress.files.hashing import digest_file, digest_json
from compress.files.user_paths import expanded
from compress.sources.data import open_data
from compress.sources.units import PICTURE, firsts
from evaluation.evidence import Evidence
from evaluation.features.extractor import Extractor
from evaluation.features.memory import Features, remembered
from evaluation.features.opening import open_features
from evaluation.features.statistics import export, read_statistics
from evaluation.request.image_checks import Pictures, refuse_damaged
from evaluation.request.image_folders import SUFFIXES, files_of
from evaluation.values import Sample

Read = Callable[[], NDArray[np.uint8]]


def against_real(evidence: Evidence, features: str, resize: str = "pil", reference: str = "") -> Sample:
    """Sample with `values` float32 [n, d] of the painted pictures, and `reference` float32 [m, d] or `moments`.

    They are held against the real pictures of the same items; where an item has none, against what the original painted.

    Args:
        features, resize: the extractor, and how pictures are brought to its size.
        reference: a folder of pictures to hold them against instead, or an `.npz` file of mu and sigma: then only the
            Sample's `moments` are known.

    Raises:
        UserError: the extractor or the reference does not read.
    """
    extractor = open_features(features, resize)
    values = painted(evidence, extractor)
    protocol = protocol_of(extractor)
    if not reference:
        found, whose = _own_reference(evidence, extractor, values)
        return Sample(evidence.unit_ids, values, found, protocol=protocol | {"reference": whose})
    path = expanded(reference)
    if path.is_dir():
        files, digest, left_out = _folder(path)
        found = _of_folder(files, digest, extractor, evidence.memory)
        said = {"reference": f"{len(files)} pictures {digest[:12]}"}
        return Sample(evidence.unit_ids, values, found, protocol=protocol | said, left_out=left_out)
    moments = read_statistics(path, values.shape[1])
    said = {"reference": f"statistics {digest_file(path)[:12]}"}
    return Sample(evidence.unit_ids, values, moments=moments, protocol=protocol | said)


def painted(evidence: Evidence, extractor: Extractor) -> Features:
    """Features of the pictures that this side painted, float32 [n, d]."""
    count = len(evidence.items)
    reads = [partial(_painted, evidence, index) for index in range(count)]
    return remembered(evidence.memory, extractor, evidence.key, count, lambda: _extract(extractor, reads))


def protocol_of(extractor: Extractor) -> dict[str, str | int | float]:
    """What decides a score beside the pictures."""
    return {"features": extractor.name, "weights": extractor.digest, "resize": extractor.resize}


def export_reference(source: str, features: str, resize: str, out: Path, count: int = 0, emit: Emit = silent) -> int:
    """Write mu and sigma of the features of real pictures as `.npz`, and say of how many. Copies count once.

    Args:
        source: a folder of pictures, or data that `compress.sources.data.open_data` knows, such as zoo://digits/test.
        count: of the first pictures; 0: of all.

    Raises:
        UserError: there are fewer than two pictures, no end of them, or one does not read.
    """
    extractor = open_features(features, resize)
    folder = expanded(source)
    reads, left_out = _reads_of(folder) if folder.is_dir() else _of_data(source, count)
    if left_out:
        emit(Event("warning", "reference", left_out))
    reads = reads[: count or len(reads)]
    if len(reads) < 2:
        raise DataError(f"{len(reads)} pictures have no covariance", place=source, fix="give more")
    refuse_damaged([Pictures("", tuple(reads))], emit=emit)
    export(out, _extract(extractor, reads))
    return len(reads)


def _own_reference(evidence: Evidence, extractor: Extractor, values: Features) -> tuple[Features, str]:
    """The items' real pictures if all have one, else what the original painted, which this side may itself be. A picture with several
    captions counts once, and then none belongs to one item."""
    real = [item.picture for item in evidence.items if item.picture]
    units = evidence.items[:: evidence.each]
    once = firsts(item.file or item.id for item in units)
    if len(real) == len(evidence.items) and len(once) < len(units):
        reads = [real[index * evidence.each] for index in once]
        found = remembered(
            evidence.memory, extractor, evidence.data_key, len(reads), lambda: _extract(extractor, reads)
        )
        return found, f"the data's {len(reads)} pictures"
    if len(real) == len(evidence.items):
        return remembered(
            evidence.memory, extractor, evidence.data_key, len(real), lambda: _extract(extractor, real)
        ), "the data's pictures"
    found = painted(evidence.original, extractor) if evidence.original else values
    return found, "the baseline's pictures"


def _of_folder(files: Sequence[Path], digest: str, extractor: Extractor, memory: Path | None) -> Features:
    reads = [partial(read_picture, file) for file in files]
    return remembered(memory, extractor, digest_json([READER, digest]), len(files), lambda: _extract(extractor, reads))


def _folder(path: Path) -> tuple[list[Path], str, str]:
    """The pictures below a folder in sorted order, the digest of their contents in that order, and in words which copies of
    others are not among them."""
    files = list(files_of(path))
    if not files:
        raise DataError("holds no pictures", place=str(path), fix=f"files ending in {', '.join(SUFFIXES)}")
    digests = [digest_file(f) for f in files]
    kept = firsts(digests)
    said = f"{len(kept)} of {len(files)} pictures in {path} count: the others are copies"
    return [files[i] for i in kept], digest_json([digests[i] for i in kept]), said if len(kept) < len(files) else ""


def _reads_of(folder: Path) -> tuple[list[Read], str]:
    files, _, left_out = _folder(folder)
    return [partial(read_picture, file) for file in files], left_out


def _of_data(source: str, count: int) -> tuple[list[Read], str]:
    data = open_data(source, Path())
    if data.count < 0 and not count:
        raise UserError("gives as many pictures as one wants", place=source, fix="say how many")
    items = data.first(count or data.count)
    reads = [item.picture for item in items if item.picture]
    if len(reads) < len(items):
        raise DataError("has items without a picture", place=source, fix="give data of pictures, or a folder of them")
    kept = firsts(row[PICTURE] for row in data.rows[: len(items)]) if data.rows else range(len(items))
    said = f"{len(kept)} of {len(items)} pictures in {source} count: the others are copies"
    return [reads[i] for i in kept], said if len(kept) < len(items) else ""


def _extract(extractor: Extractor, reads: Sequence[Read]) -> Features:
    """Features of the pictures, each read when its batch is due."""

    def one_by_one() -> Iterator[list[NDArray[np.uint8]]]:
        for read in reads:
            yield [read()]

    return extractor.pictures(one_by_one())


def _painted(evidence: Evidence, index: int) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = evidence.pictures(index, index + 1)[0]
    return picture
