"""Digests of files, folders and values. A folder's digest is remembered by (path, inode, size, time of change)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from compress.errors import ModelError

CHUNK = 1 << 20


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON: sorted keys, no white space. Raises TypeError for what JSON cannot say."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def list_files(folder: Path) -> tuple[Path, ...]:
    """Every file below `folder`, relative, sorted; caches and hidden files of editors and hubs are not content."""
    found = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    return tuple(sorted(f for f in found if not any(part.startswith(".") or part == "__pycache__" for part in f.parts)))


def digest_files(folder: Path) -> dict[str, str]:
    """Digest of each file below `folder`, by relative POSIX path."""
    return {f.as_posix(): digest_file(folder / f) for f in list_files(folder)}


def digest_folder(folder: Path, memory: Path | None = None) -> str:
    """Digest of a whole folder. `memory` is a folder where it is remembered until any file in it changes.

    Raises:
        ModelError: a file does not read.
    """
    try:
        stamp = digest_json([str(folder.resolve()), [_stamp(folder / f) for f in list_files(folder)]])
        note = memory / stamp if memory else None
        if note and note.is_file():
            return note.read_text()
        digest = digest_json(digest_files(folder))
    except OSError as error:
        raise ModelError(
            f"does not read: {error}", place=str(folder), fix="check the folder and its permissions"
        ) from error
    if note:
        _remember(note, digest)
    return digest


def _stamp(path: Path) -> list[str | int]:
    facts = path.stat()
    return [str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns]


def _remember(note: Path, digest: str) -> None:
    """Best effort: a memory that cannot be written costs time, not correctness."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(".tmp")
        temporary.write_text(digest)
        temporary.replace(note)
    except OSError:
        return
