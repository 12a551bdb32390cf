"""What is remembered of the files of a large folder: a digest of each, which holds for as long as the file stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from compress.files.hashing import Identity, digest_file, digest_json, identity, remember, touch

Known = dict[str, tuple[Identity, str]]


class Looking(Protocol):
    """Gives the digest of a file, by its name in the folder; `look` is called of one that is not known, or is another by now. What is looked
    at otherwise in another role is known by that too."""

    def __call__(self, name: str, look: Callable[[], None], *, role: str = "") -> str: ...


@contextmanager
def remembering(folder: Path, memory: Path | None) -> Iterator[Looking]:
    """Digests of a folder's files while the context lasts; what was new is remembered at its end, below `memory`, if nothing failed."""
    note = memory / digest_json(["files", str(folder.resolve())]) if memory else None
    known = _read(note)
    seen: Known = {}

    def digest(name: str, look: Callable[[], None], *, role: str = "") -> str:
        now, key = _stamp(folder / name), f"{name}\n{role}" if role else name
        before = known.get(key)
        if before is None or before[0] != now:
            look()
            before = now, digest_file(folder / name)
        seen[key] = before
        return before[1]

    yield digest
    if note and seen == known:
        touch(note)
    elif note:
        remember(note, json.dumps(seen))


def _stamp(file: Path) -> Identity:
    """What a file is now, with the time of its last change of any kind: a program can set the other one back."""
    return *identity(file), file.stat().st_ctime_ns


def _read(note: Path | None) -> Known:
    try:
        stored = json.loads(note.read_text()) if note else {}
        return {name: (tuple(map(int, stamp)), str(digest)) for name, (stamp, digest) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or no note of ours: all files are read
        return {}
