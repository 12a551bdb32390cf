"""Digests of files, folders and values. A folder's digest is remembered by (path, inode, size, time of change)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from compress.errors import ModelError

CHUNK = 1 << 20
FILES = ".files"  # ends the note that holds the digest of each file, beside that of the whole folder
Identity = tuple[int, ...]  # device, inode, size, time of change


def digest_json(value: object) -> str:
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


def digest_files(folder: Path, known: Mapping[Identity, str] | None = None) -> dict[str, str]:
    """Digest of each file below `folder`, by relative POSIX path; a file that is a `known` one is not read."""
    return {
        f.as_posix(): (known or {}).get(identity(folder / f)) or digest_file(folder / f) for f in list_files(folder)
    }


def identity(path: Path) -> Identity:
    """What stays as it is while nobody writes to a file, whichever of its hard links one looks at."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def identities(folder: Path, digests: Mapping[str, str]) -> dict[Identity, str]:
    """The digests of a folder's files by what each file is now: take them before anybody may write to one."""
    return {identity(folder / name): digest for name, digest in digests.items()}


def digest_folder(folder: Path, memory: Path | None = None) -> str:
    """Digest of a whole folder. `memory` is a folder where it is remembered until any file in it changes.

    Raises:
        ModelError: a file does not read.
    """
    with _reading(folder):
        note = _note(folder, memory)
        if note and note.is_file():
            touch(note)
            return note.read_text()
        return digest_json(_digest_anew(folder, note))


def unread_bytes(folder: Path, memory: Path) -> int:
    """How much `digest_folder` would read of a folder, or `remembered_digest` of a file: nothing where the digest is remembered, or there is
    neither."""
    if folder.is_file():
        return 0 if _file_note(folder, memory).is_file() else folder.stat().st_size
    note = _note(folder, memory) if folder.is_dir() else None
    return 0 if note is None or note.is_file() else sum((folder / f).stat().st_size for f in list_files(folder))


def remembered_digest(file: Path, memory: Path | None = None) -> str:
    """sha256 of a file's bytes, remembered as that of a folder is.

    Raises:
        ModelError: it does not read.
    """
    with _reading(file):
        note = _file_note(file, memory) if memory else None
        if note and note.is_file():
            touch(note)
            return note.read_text()
        digest = digest_file(file)
        if note:
            remember(note, digest)
        return digest


def folder_files(folder: Path, memory: Path | None = None) -> dict[str, str]:
    """Digest of each file of a folder, by relative POSIX path, remembered as that of the whole folder is.

    Raises:
        ModelError: a file does not read.
    """
    with _reading(folder):
        note = _note(folder, memory)
        return _remembered_files(note) or _digest_anew(folder, note)


def touch(path: Path) -> None:
    """Note that a file was of use just now, where the file system lets us."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"does not read: {error}", place=str(folder), fix="check the folder and its permissions"
        ) from error


def _note(folder: Path, memory: Path | None) -> Path | None:
    """Where the digest of a folder as it is now is remembered."""
    if memory is None:
        return None
    return memory / digest_json([str(folder.resolve()), [_stamp(folder / f) for f in list_files(folder)]])


def _file_note(file: Path, memory: Path) -> Path:
    """Where the digest of a file as it is now is remembered."""
    return memory / digest_json([str(file.resolve()), _stamp(file)])


def _stamp(path: Path) -> list[str | int]:
    facts = path.stat()
    return [str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns]


def _digest_anew(folder: Path, note: Path | None) -> dict[str, str]:
    files = digest_files(folder)
    if note:
        remember(note.with_suffix(FILES), json.dumps(files))
        remember(note, digest_json(files))
    return files


def _remembered_files(note: Path | None) -> dict[str, str]:
    """{} where none are remembered (the notes of before held the whole digest alone), or they are not the folder's."""
    try:
        files: dict[str, str] = json.loads(note.with_suffix(FILES).read_text()) if note else {}
        if note and digest_json(files) != note.read_text():
            return {}
    except (OSError, ValueError):
        return {}
    if note:
        touch(note)
        touch(note.with_suffix(FILES))
    return files


def remember(note: Path, text: str) -> None:
    """Best effort: a memory that cannot be written costs time, not correctness."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")  # which no other process is writing
        temporary.write_text(text)
        temporary.replace(note)
    except OSError:
        return
