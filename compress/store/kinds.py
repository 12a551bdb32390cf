"""What a cache keeps, by kind: where it lies, how much room it takes, and when it was last of use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.files.hashing import list_files
from compress.files.locks import lock_of

ENTRY = ".entry.json"
ENDING = ".safetensors"  # of features, which are a file each
Inode = tuple[int, int]  # device, inode


@dataclass(frozen=True)
class Kind:
    """`folder` lies below the cache's root and holds one file or folder a key; `record` is the file in it that is touched
    whenever it is of use ("": whatever was written last tells)."""

    folder: str
    record: str = ""


CODE = Kind(
    "code", ".used"
)  # compiled, for one torch and device a folder; a process holds its record as long as it lives
KINDS = (
    *(Kind("entries", ENTRY), Kind("evidence", "evidence.json"), Kind("features"), Kind("scratch"), Kind("training")),
    CODE,
)


@dataclass(frozen=True)
class Stored:
    """One thing that a cache keeps.

    size_bytes: what it takes beside whatever was used less recently: a file with several names takes its room once.
    used: seconds since the epoch of its last use.
    files: the bytes of each of its files.
    facts: what was recorded when it was made; of entries alone.
    """

    kind: str
    key: str
    path: Path
    size_bytes: int
    used: float
    files: dict[Inode, int] = field(repr=False)
    record: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def lock(self) -> Path:
        """What whoever works on it holds: an entry and the scratch folder it is made in have one lock."""
        return lock_of(self.path.parent, f"training-{self.key}" if self.kind == "training" else self.key)


def stored(root: Path, kinds: Sequence[Kind] = KINDS) -> tuple[Stored, ...]:
    """All that lies in a cache, the least recently used first."""
    seen: set[Inode] = set()
    found = []
    for one in sorted((s for kind in kinds for s in _of_kind(root, kind)), key=lambda s: (s.used, s.key)):
        found.append(replace(one, size_bytes=sum(size for inode, size in one.files.items() if inode not in seen)))
        seen |= one.files.keys()
    return tuple(found)


def _of_kind(root: Path, kind: Kind) -> Iterator[Stored]:
    for path in sorted((root / kind.folder).glob("[!.]*")):  # hidden: somebody is at work on it
        stats = _stats(path)
        record = path / kind.record if kind.record and (path / kind.record).is_file() else None
        if kind.record == ENTRY and record is None:
            continue
        with suppress(FileNotFoundError):  # another run has just dropped it
            used = record.stat().st_mtime if record else max(s.st_mtime for s in (path.stat(), *stats))
            files = {(s.st_dev, s.st_ino): s.st_size for s in stats}
            facts = _facts(record) if record and kind.record == ENTRY else {}
            yield Stored(kind.folder, path.name.removesuffix(ENDING), path, 0, used, files, record, facts)


def _stats(path: Path) -> list[os.stat_result]:
    """Of a file, or of every file below a folder; those that go while one looks are not counted."""
    found = []
    with suppress(FileNotFoundError):
        for file in [path] if path.is_file() else [path / f for f in list_files(path)]:
            with suppress(FileNotFoundError):
                found.append(file.stat())
    return found


def _facts(record: Path) -> dict[str, Any]:
    try:
        facts = json.loads(record.read_text())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
