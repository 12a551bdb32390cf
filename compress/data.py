"""Data sources, opened by name: a zoo set, an image folder with `metadata.jsonl`, a text file, a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import DataError
from compress.hashing import digest_file, digest_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.tasks import Observable

Kind = Literal["captioned_images", "texts"]


@dataclass(frozen=True)
class Item:
    """One caption with its picture (uint8 [height, width, 3], made when asked for), or one document."""

    id: str
    text: str
    picture: Callable[[], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class Data:
    """A source of items. `digest` covers their content and belongs into keys; `read(i)` is deterministic."""

    source: str
    kind: Kind
    digest: str
    count: int  # -1: as many as wanted, or as reading shows
    read: Callable[[int], Item]  # IndexError behind the last
    gives: frozenset[Observable] = frozenset()  # what of a metric's needs its items bring themselves

    def first(self, n: int) -> tuple[Item, ...]:
        """The first `n` items, or all there are."""
        return tuple(islice(self._all(), n))

    def _all(self) -> Iterator[Item]:
        for index in count() if self.count < 0 else range(self.count):
            try:
                item = self.read(index)
            except IndexError:
                return
            yield item


def open_data(source: str, base: Path) -> Data:
    """Open a source; relative paths start at `base`, the recipe's folder.

    Raises:
        DataError: it does not exist, or does not read.
    """
    if source.startswith("zoo://"):
        from compress.zoo import open_zoo_data

        return open_zoo_data(source)
    path = base / Path(source).expanduser()
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be read
        said = f"cannot be looked at: {error.strerror}"
        raise DataError(said, place=source[:200], fix="check the path, and who may read it") from error
    if folder:
        return _image_folder(path, source)
    if file:
        return _jsonl(path, source) if path.suffix == ".jsonl" else _text(path, source)
    raise DataError(f"no such data: {source}", fix="give zoo://digits/test, zoo://docstrings/test, a folder or a file")


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"is no JSON: {error}", place=f"{path}:{number}", fix="one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError("is no JSON object", place=f"{path}:{number}", fix="one JSON object a line")
        rows.append(row)
    if not rows:
        raise DataError("holds no rows", place=str(path), fix="one JSON object a line")
    return rows


def _image_folder(path: Path, source: str) -> Data:
    metadata = path / "metadata.jsonl"
    if not metadata.is_file():
        raise DataError(
            "an image folder needs metadata.jsonl", place=str(path), fix='one {"file_name": …, "text": …} a line'
        )
    rows = _rows(metadata)
    for number, row in enumerate(rows, 1):
        if not {"file_name", "text"} <= row.keys() or not (path / str(row["file_name"])).is_file():
            raise DataError(
                "needs file_name of an existing file, and text", place=f"{metadata}:{number}", fix="mend the row"
            )
    digest = digest_json([[r["file_name"], r["text"], digest_file(path / r["file_name"])] for r in rows])

    def read(index: int) -> Item:
        row = rows[index]
        return Item(str(row["file_name"]), str(row["text"]), lambda: _picture(path / str(row["file_name"])))

    return Data(source, "captioned_images", digest, len(rows), read, _given([str(row["text"]) for row in rows]))


def _given(captions: list[str]) -> frozenset[Observable]:
    """What captions tell beside themselves: those in the grammar of the zoo's digits say where each digit stands."""
    from compress.zoo import scenes

    return frozenset({"captions", "scenes"}) if all(map(scenes.is_scene, captions)) else frozenset({"captions"})


def _picture(path: Path) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _jsonl(path: Path, source: str) -> Data:
    rows = _rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str):
            raise DataError("needs a `text` string", place=f"{path}:{number}", fix='{"text": "…"}')
    return _texts(source, [(str(row.get("id", index)), str(row["text"])) for index, row in enumerate(rows)])


def _text(path: Path, source: str) -> Data:
    """A plain text file: documents are separated by blank lines."""
    try:
        documents = [d.strip() for d in path.read_text().split("\n\n") if d.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text: {error}", place=str(path), fix="save it as UTF-8") from error
    if not documents:
        raise DataError("holds no text", place=str(path), fix="documents are separated by blank lines")
    return _texts(source, [(str(i), d) for i, d in enumerate(documents)])


def _texts(source: str, documents: list[tuple[str, str]]) -> Data:
    items = [Item(name, text) for name, text in documents]
    return Data(source, "texts", digest_json(documents), len(items), items.__getitem__)
