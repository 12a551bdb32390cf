"""Data sources, opened by name: a zoo set, an image folder with `metadata.jsonl`, a text file, a JSONL file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.data.chats import canonical, conversation_of, plain
from compress.data.edits import AFTER, BEFORE, SHAPES, Edit, edit_of, read_mask
from compress.data.images import SUFFIXES, read_image, refuse_other
from compress.data.items import Data, Item, Kind, Message
from compress.data.texts import PROSE, ROWS, captioning, read_rows, read_text, rekeyed
from compress.errors import DataError
from compress.files.hashing import digest_json
from compress.files.known_files import Looking, remembering
from compress.files.user_paths import expanded

if TYPE_CHECKING:
    from compress.tasks import Observable


METADATA = "metadata.jsonl"  # in a folder of images: their captions


def open_data(source: str, base: Path, kind: Kind | None = None, memory: Path | None = None) -> Data:
    """Open a source; relative paths start at `base`, the recipe's folder.

    Args:
        kind: what the model is run on, where that is known: no other is proposed in place of a source that is not there.
        memory: a folder where digests of images are remembered, so that those that stay as they were are read once.

    Raises:
        DataError: it does not exist, or does not read.
    """
    if source.startswith("zoo://"):
        from compress.zoo import open_zoo_data

        return open_zoo_data(source)
    path = base / expanded(source)
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be read
        message = f"cannot be looked at: {error.strerror}"
        raise DataError(message, place=source[:200], fix="check the path, and who may read it") from error
    if folder and kind not in (None, "texts") and not (path / METADATA).is_file() and _texts_alone(path):
        raise DataError("is a folder of texts, and this model needs images", place=str(path), fix=_layouts(kind))
    if folder:
        return _image_folder(path, source, memory, "captioned_images" if kind in (None, "texts") else kind)
    if file:
        return next(layout for layout in LAYOUTS if layout.holds(path)).opened(path, source)
    raise DataError(f"no such data: {source}, at {path.absolute()}", fix=_instead(path, source, kind))


def _instead(path: Path, source: str, kind: Kind | None) -> str:
    """What to give in place of data that are not there: what has nearly that name, or what could be given."""
    beside = Path.exists if kind is None else Path.is_file if kind == "texts" else Path.is_dir
    names = [one.name for one in _inside(path.parent) if beside(one)]
    if close := difflib.get_close_matches(path.name, names, n=1, cutoff=0.7):
        return f"did you mean `{source.removesuffix(path.name)}{close[0]}`?"
    return _layouts(kind)


def _layouts(kind: Kind | None) -> str:
    """What data of a kind, or of any, can be given as."""
    ways = [layout.title for layout in LAYOUTS if kind in (None, layout.kind)]
    sets = " or ".join(ZOO[one] for one in ZOO if kind in (None, one))
    return f"give {', '.join(ways)}{f', or {sets}' if sets else ''}"


def _texts_alone(folder: Path) -> list[str]:
    """The files of text in a folder without other ones; captions that lie beside their images are none."""
    names = sorted(one.name for one in _inside(folder) if one.is_file())
    return names if all(Path(name).suffix.lower() in PROSE for name in names) else []


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing of one that is not there, or may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _image_folder(path: Path, source: str, memory: Path | None = None, kind: Kind = "captioned_images") -> Data:
    metadata = path / METADATA
    if not metadata.is_file() and (texts := _texts_alone(path)):
        message = f"is a folder of {len(texts)} text{'s' * (len(texts) > 1)}, and texts are read from one file"
        joined = f"awk 'FNR==1 && NR>1 {{print \"\"}} 1' {source}/*{Path(texts[0]).suffix} > all.txt, and give that"
        alone = len(texts) == 1 or texts[0].endswith(".json")
        raise DataError(message, place=str(path), fix=f"give {source}/{texts[0]}" if alone else joined)
    if not metadata.is_file():
        raise DataError("an image folder needs metadata.jsonl", place=str(path), fix=captioning(path))
    numbered = read_rows(metadata)
    found: list[tuple[tuple[str, str, str], Edit | None]] = []
    with remembering(path, memory) as digest:
        for number, row in numbered:
            at = f"{metadata}:{number}"
            found.append((_captioned(row, path, at, digest), edit_of(row, kind, path, at, digest)))
    rows = tuple((file, text, *(edit.content if edit else ()), seen) for (file, text, seen), edit in found)

    def read(index: int) -> Item:
        (file, text, _), edit = found[index]
        return _edited(Item(file, text, lambda: read_image(path / file), file), edit, path)

    def place(index: int) -> str:
        return f"{metadata}:{numbered[index][0]}"

    gives, lacks = _captions_of([row[1] for row in rows], [edit for _, edit in found if edit], place)
    loose = range(len(rows))  # a file may have several captions, and each is an item
    unused = _unused(path, [row for _, row in numbered])
    return Data(source, kind, digest_json(rows), len(rows), read, gives, lacks, rows, loose, place, unused, path)


def _unused(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """How many images of a folder no row names, in words; "" where there are none."""
    named = {os.path.normpath(value) for row in rows for value in row.values() if isinstance(value, str)}
    within = {"", *(os.path.dirname(str(row["file_name"])) for row in rows)}
    there = {
        os.path.normpath(os.path.join(place, one.name))
        for place in within
        for one in _inside(folder / place)
        if one.suffix.lower() in SUFFIXES
    }
    left = sorted(there - named)
    are = "are named" if len(left) > 1 else "is named"
    return (
        f"{len(left)} of {len(there)} images in {folder} {are} in no row of {METADATA}: {left[0]} first" if left else ""
    )


def _edited(item: Item, edit: Edit | None, folder: Path) -> Item:
    """An item with what its image is made of."""
    if edit is None:
        return item
    return replace(
        item,
        input=lambda: read_image(folder / edit.input),
        mask=(lambda: read_mask(folder / edit.mask)) if edit.mask else None,
        input_file=edit.input,
        mask_file=edit.mask,
        before=edit.before,
        after=edit.after,
    )


def _captions_of(
    texts: list[str], edits: list[Edit], place: Callable[[int], str]
) -> tuple[frozenset[Observable], dict[Observable, str]]:
    """What the rows' texts tell, and where what they might have shown is lacking."""
    lacks: dict[Observable, str] = {}
    if (blank := next((i for i, text in enumerate(texts) if not text.strip()), None)) is not None:
        lacks["captions"] = f"the text of {place(blank)} is empty"
    gives: frozenset[Observable] = _given(texts) if blank is None else frozenset()
    short = next((i for i, edit in enumerate(edits) if not edit.before.strip() or not edit.after.strip()), None)
    if short is not None:
        lacks["edits"] = f"{place(short)} has not both `{BEFORE}` and `{AFTER}`"
    return (gives | {"edits"} if edits and short is None else gives), lacks


def as_captions(data: Data) -> Data:
    """Texts as captions without images, for a model that generates and is compared with another."""
    texts = [row[1] for row in data.rows]
    rows = tuple((id, text) for id, text, *_ in data.rows)
    return replace(data, kind="captioned_images", rows=rows, gives=_given(texts))


def _given(captions: list[str]) -> frozenset[Observable]:
    """What captions tell beside themselves: those in the grammar of the zoo's digits say where each digit stands."""
    from compress.zoo import scenes

    return frozenset({"captions", "scenes"}) if all(map(scenes.is_scene, captions)) else frozenset({"captions"})


def _captioned(row: Mapping[str, Any], folder: Path, place: str, digest: Looking) -> tuple[str, str, str]:
    """A row of metadata: its file, its text, the file's digest.

    Raises:
        DataError: it names no image that is there, or no text.
    """
    file, text = row.get("file_name"), row.get("text")
    if not isinstance(file, str) or not file or not (folder / file).is_file():
        raise DataError(
            "needs file_name, of a file in this folder", place=place, fix='{"file_name": "0.png", "text": "…"}'
        )
    if not isinstance(text, str):
        message = f"needs one text, and has {'none' if text is None else f'a {type(text).__name__}'}"
        raise DataError(message, place=place, fix='one caption a row: {"file_name": "0.png", "text": "…"}')
    try:
        return file, text, digest(file, lambda: refuse_other(folder / file))
    except DataError as error:
        wrong = error.problems[0]
        raise DataError(f"{file} {wrong.message}", place=place, fix=wrong.fix) from error


def _jsonl(path: Path, source: str) -> Data:
    """Rows of texts, of conversations, or of some of each."""
    rows = read_rows(path)
    chats = _conversations(path, rows)
    for (number, row), messages in zip(rows, chats, strict=True):
        if not messages and not isinstance(row.get("text"), str):
            message = f"needs a `text` string, and has {_lacking_text(row)}"
            raise DataError(message, place=f"{path}:{number}", fix=rekeyed(path, row))
    loose = {index for index, (_, row) in enumerate(rows) if row.get("id") is None}
    ids = [str(index if index in loose else row["id"]) for index, (_, row) in enumerate(rows)]
    items = [
        Item(id, plain(messages) if messages else str(row["text"]), messages=messages)
        for id, (_, row), messages in zip(ids, rows, chats, strict=True)
    ]
    return replace(_texts(source, items, lambda index: f"{path}:{rows[index][0]}"), loose=frozenset(loose))


def _conversations(path: Path, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[Message, ...]]:
    """The conversation of each row; () where it has none.

    Raises:
        DataError: a row has none that can be read; it says how many more have not.
    """
    found: list[tuple[Message, ...]] = []
    wrong: list[DataError] = []
    for number, row in rows:
        try:
            found.append(conversation_of(row, f"{path}:{number}"))
        except DataError as error:
            wrong.append(error)
    if len(wrong) > 1:
        first, more = wrong[0].problems[0], len(wrong) - 1
        message = f"{first.message}; {more} more of the {len(rows)} rows cannot be read either"
        raise DataError(message, place=first.place, fix=first.fix) from wrong[0]
    if wrong:
        raise wrong[0]
    return found


def _lacking_text(row: Mapping[str, Any]) -> str:
    """What a row without a text has instead."""
    if "text" in row:
        return "none" if row["text"] is None else f"a {type(row['text']).__name__}"
    return ", ".join(f"`{key[:40]}`" for key in list(row)[:6]) or "no key at all"


def _text(path: Path, source: str) -> Data:
    """A plain text file: documents are separated by blank lines."""
    documents = [d.strip() for d in read_text(path).split("\n\n") if d.strip()]
    if not documents:
        raise DataError("holds no text", place=str(path), fix="documents are separated by blank lines")
    items = [Item(str(i), d) for i, d in enumerate(documents)]
    return _texts(source, items, lambda index: f"{path}, document {index + 1}")


def _texts(source: str, items: list[Item], place: Callable[[int], str]) -> Data:
    rows = tuple((one.id, one.text, *([canonical(one.messages)] if one.messages else [])) for one in items)
    return Data(source, "texts", digest_json(rows), len(items), items.__getitem__, rows=rows, place=place)


@dataclass(frozen=True)
class Layout:
    """One way in which data may lie on disk.

    title: what is given, and `row` what stands in it, in words.
    holds: whether a folder or file that is there is meant so; the first layout that says yes opens it.
    """

    title: str
    row: str
    kind: Kind
    holds: Callable[[Path], bool]
    opened: Callable[[Path, str], Data]


LAYOUTS = (
    Layout(
        "a folder of images with their captions in metadata.jsonl",
        'one {"file_name": "0.png", "text": "…"} a line, each a caption of an image below that folder; several may be of one',
        "captioned_images",
        Path.is_dir,
        _image_folder,
    ),
    Layout(
        "a folder of images with the images that they are made of, named in metadata.jsonl",
        f"one {SHAPES['image_edits']} a line: image `file_name` is what `text`, a prompt or an instruction, is to make of `input_file_name` (or "
        f"`source_file_name`); `{BEFORE}` and `{AFTER}` may caption both, for metrics that follow the edit",
        "image_edits",
        Path.is_dir,
        partial(_image_folder, kind="image_edits"),
    ),
    Layout(
        "a folder of images with the images that they are made of and masks, named in metadata.jsonl",
        f"one {SHAPES['masked_images']} a line: the mask, of the input's size, is white where that is inpainted",
        "masked_images",
        Path.is_dir,
        partial(_image_folder, kind="masked_images"),
    ),
    Layout(
        f"a file of JSON rows ({', '.join(ROWS)})",
        'one {"text": "…"} a line, or in a .json one array of them; each is a document, with an `id` or without; where a model generates, a caption that it is taught or calibrated on. Or a conversation, {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}, also as {"conversations": [{"from": "human", "value": "…"}, …]}, for a language model with a chat template: taught and scored are the tokens of the assistant',
        "texts",
        lambda path: path.suffix.lower() in ROWS,
        _jsonl,
    ),
    Layout(
        "any other file of text, in UTF-8",
        "documents are separated by blank lines; tables, archives and marked-up formats are refused",
        "texts",
        Path.is_file,
        _text,
    ),
)
ZOO: Mapping[Kind, str] = {
    "captioned_images": "zoo://digits/test",
    "image_edits": "zoo://digits-edits/test",
    "masked_images": "zoo://digits-holes/test",
    "texts": "zoo://docstrings/test",
}
