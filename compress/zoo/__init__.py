"""`zoo://name`: small models trained for real on data every installation has, and that data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.items import Data, Item
from compress.errors import DataError, ModelError, near

if TYPE_CHECKING:
    from compress.zoo.docstrings import Document

MODELS, ADAPTERS = Path(__file__).parent / "models", Path(__file__).parent / "adapters"
SETS, SPLITS = ("digits", "digits-edits", "digits-holes", "digits-teal", "docstrings"), ("train", "validation", "test")


def zoo_model(name: str) -> Path:
    """The folder of the zoo model `name`.

    Raises:
        ModelError: there is none; the fix names the near matches.
    """
    known = tuple(sorted(p.name for p in MODELS.iterdir() if p.is_dir())) if MODELS.is_dir() else ()
    if name not in known:
        raise ModelError(f"the zoo has no model `{name}`", fix=near(name, known))
    return MODELS / name


def zoo_adapter(name: str) -> Path:
    """The folder of the zoo's adapter `name`.

    Raises:
        ModelError: there is none; the fix names the near matches.
    """
    known = tuple(sorted(p.name for p in ADAPTERS.iterdir() if p.is_dir())) if ADAPTERS.is_dir() else ()
    if name not in known:
        raise ModelError(f"the zoo has no adapter `{name}`", fix=near(name, known))
    return ADAPTERS / name


def open_zoo_data(source: str) -> Data:
    """Open `zoo://SET/SPLIT`, SET being one of `SETS` and SPLIT train, validation or test.

    Raises:
        DataError: there is no such set or split.
    """
    name, _, split = source.removeprefix("zoo://").partition("/")
    if split not in SPLITS:
        raise DataError(f"{source} names no split", fix=f"zoo://{name}/train, /validation or /test")
    openers = dict(zip(SETS, (_digits, _edits, _holes, _teal, _docstrings), strict=True))
    if name not in openers:
        raise DataError(f"the zoo has no data set `{name}`", fix=near(name, SETS))
    return openers[name](source, split)


# A scene is a function of (generator, split, index), and so is what is made of one: those are its content.


def _digits(source: str, split: str) -> Data:
    from compress.zoo import scenes

    def read(index: int) -> Item:
        scene = scenes.scene(split, index)
        return Item(f"{split}/{index}", scene.caption, lambda: scenes.render(scene))

    return Data(
        source, "captioned_images", f"digits-v{scenes.VERSION}/{split}", -1, read, frozenset({"captions", "scenes"})
    )


def _edits(source: str, split: str) -> Data:
    from compress.zoo import edits, scenes

    def read(index: int) -> Item:
        edit = edits.edit(split, index)
        before, after = edit.before, edit.after
        shown = Item(f"{split}/{index}", edit.instruction, lambda: scenes.render(after))
        return replace(shown, input=lambda: scenes.render(before), before=before.caption, after=after.caption)

    digest = f"digits-v{scenes.VERSION}/edits-v{edits.VERSION}/{split}"
    return Data(source, "image_edits", digest, -1, read, frozenset({"captions", "scenes", "edits"}))


def _holes(source: str, split: str) -> Data:
    from compress.zoo import holes, scenes

    def read(index: int) -> Item:
        hole = holes.hole(split, index)
        whole = Item(f"{split}/{index}", hole.scene.caption, lambda: scenes.render(hole.scene))
        return replace(whole, input=lambda: hole.rest, mask=lambda: hole.mask)

    digest = f"digits-v{scenes.VERSION}/holes-v{holes.VERSION}/{split}"
    return Data(source, "masked_images", digest, -1, read, frozenset({"captions", "scenes"}))


def _teal(source: str, split: str) -> Data:
    from compress.zoo import new_ink, scenes

    def read(index: int) -> Item:
        scene = new_ink.teal_scene(split, index)
        return Item(f"{split}/{index}", scene.caption, lambda: scenes.render(scene))

    digest = f"digits-v{scenes.VERSION}/teal-v{new_ink.VERSION}/{split}"
    return Data(source, "captioned_images", digest, -1, read, frozenset({"captions", "scenes"}))


def _docstrings(source: str, split: str) -> Data:
    from compress.files.hashing import digest_file, digest_json
    from compress.zoo import docstrings

    if split == "train":
        # Reading every library takes ten seconds, so a plan does not: versions and this code decide what would be read.
        code, held_out = (
            digest_file(Path(docstrings.__file__)),
            [docstrings.held_out(s) for s in ("validation", "test")],
        )
        digest = digest_json([code, docstrings.corpus_versions(), [[d.text for d in some] for some in held_out]])
        return Data(source, "texts", digest, -1, lambda i: _item(docstrings.train_documents()[i]))
    items = [_item(d) for d in docstrings.held_out(split)]
    rows = tuple((i.id, i.text) for i in items)
    return Data(
        source,
        "texts",
        digest_json(rows),
        len(items),
        items.__getitem__,
        rows=rows,
        place=lambda index: f"{source}, {items[index].id}",
    )


def _item(document: Document) -> Item:
    return Item(document.id, document.text)
