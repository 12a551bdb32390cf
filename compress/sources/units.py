"""Units of data: what of a source counts, and once. Equal items are one unit, an empty text is none, and two splits share no item.

Equal are texts that are the same, or images whose files are, with the same caption. All is read from what a source's digest is
of, so that a plan knows it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path

from compress.data.edits import SHAPES
from compress.data.items import Data, Kind
from compress.errors import DataError
from compress.files.hashing import digest_json
from compress.sources.data import open_data

# Of a row of `Data.rows`: an edit's input stands where a captioned image has its file.
ID, TEXT, IMAGE = 0, 1, 2
INPUT = IMAGE


def open_units(source: str, base: Path, kind: Kind | None = None, memory: Path | None = None) -> Data:
    """As `open_data`, of what is evaluated on: each unit once.

    Raises:
        DataError: also where an id stands for two items, or nothing is left.
    """
    return distinct(open_data(source, base, kind, memory))


def distinct(data: Data) -> Data:
    """The data without copies and empty texts, `left_out` saying how many, and each item by an id of its own; the very same where
    nothing is to be done, or it lists no items.

    Raises:
        DataError: an id that somebody gave stands for two different items, or nothing is left.
    """
    data = _named_apart(data)
    _refuse_shared_ids(data)
    spoken = [i for i, row in enumerate(data.rows) if row[TEXT].strip() or data.kind != "texts"]
    kept = [spoken[i] for i in firsts(data.rows[i][TEXT:] for i in spoken)]
    if len(kept) == len(data.rows):
        return data
    if not kept:
        raise DataError("holds nothing but empty texts", place=data.source, fix="give texts to be read")
    rows = tuple(data.rows[i] for i in kept)
    return replace(
        data,
        digest=digest_json(rows),
        count=len(rows),
        read=lambda index: data.read(kept[index]),
        rows=rows,
        place=lambda index: data.place(kept[index]),
        left_out=_message(data, len(spoken) - len(kept), len(data.rows) - len(spoken), len(kept)),
    )


def firsts(keys: Iterable[Hashable]) -> list[int]:
    """Where each key stands for the first time, in order."""
    found: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        found.setdefault(key, index)
    return list(found.values())


def overlap(role: str, one: Data, other: Data) -> str:
    """What the data of a role shares with those of the evaluation, in words with the first such item; "" where that is nothing,
    or nobody can tell. An image is the same whatever its caption says, a text whatever space is around it, and an edit where it is of the same image."""
    message = f"data.{role} shares {{}} with data.evaluate"
    if one.digest == other.digest:
        return message.format("every item")
    if one.kind != other.kind or all(data.source.startswith("zoo://") for data in (one, other)):
        return ""  # zoo splits are disjoint by construction, and tested to be
    content = TEXT if one.kind == "texts" else INPUT if one.kind in SHAPES else -1  # an image's file comes last
    mine, known = (
        {row[content].strip(): i for i, row in reversed(list(enumerate(data.rows)))} for data in (one, other)
    )
    shared = sorted((mine[content], known[content]) for content in mine.keys() & known.keys())
    if not shared:
        return ""
    count = "every item" if len(shared) == len(mine) else f"{len(shared)} item{'s' * (len(shared) > 1)}"
    here, there = one.place(shared[0][0]), other.place(shared[0][1])
    return f"{message.format(count)}: the first stands at {here} and at {there}"


def fewer(data: Data, wanted: int, usual: int) -> str:
    """That the data hold fewer items than somebody asked for, in words; "" where they do not, or nobody asked."""
    return (
        f"samples: {wanted} are asked for, and the data hold {data.count}" if 0 <= data.count < wanted != usual else ""
    )


def _named_apart(data: Data) -> Data:
    """The data with other ids for items that share one which nobody gave: the second caption of `a.png` is `a.png (2)`."""
    owners = {row[ID]: row for index, row in enumerate(data.rows) if index not in data.loose}
    taken, named = {row[ID] for row in data.rows}, dict[tuple[str, ...], str]()
    for index, row in enumerate(data.rows):
        if index in data.loose and owners.setdefault(row[ID], row) != row and row not in named:
            named[row] = next(name for n in count(2) if (name := f"{row[ID]} ({n})") not in taken)
            taken.add(named[row])
    if not named:
        return data
    ids = [named.get(row, row[ID]) if i in data.loose else row[ID] for i, row in enumerate(data.rows)]
    return replace(
        data,
        read=lambda index: replace(data.read(index), id=ids[index]),
        rows=tuple((id, *row[TEXT:]) for id, row in zip(ids, data.rows, strict=True)),
    )


def _refuse_shared_ids(data: Data) -> None:
    """Raises a DataError where two items that differ have one id: their noise and their scores would go by one name."""
    owners: dict[str, int] = {}
    for index, row in enumerate(data.rows):
        owner = owners.setdefault(row[ID], index)
        if data.rows[owner] != row:
            message = f"has the id {row[ID]!r} of another item, at {data.place(owner)}"
            raise DataError(message, place=data.place(index), fix="give each row an id of its own, or none")


def _message(data: Data, copies: int, empty: int, kept: int) -> str:
    why = [f"{copies} {'is a copy' if copies == 1 else 'are copies'} of others"] if copies else []
    why += [f"{empty} hold{'s' * (empty == 1)} no text"] if empty else []
    message = f"{kept} of {len(data.rows)} items of {data.source} count: {' and '.join(why)}"
    return f"{data.left_out}; {message}" if data.left_out else message
