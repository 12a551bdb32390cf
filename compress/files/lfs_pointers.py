"""Files that Git LFS would have fetched: a clone without it holds a page of text in place of each, which tells where its content is."""

from __future__ import annotations

import shlex
from pathlib import Path

from compress.errors import UserError

START = b"version https://git-lfs.github.com/spec/"
LONGEST = 1024  # bytes that a pointer may have, as the specification says


def refuse_pointer(file: Path, error: type[UserError]) -> None:
    """Raises an `error` where a file is a pointer of Git LFS; one that cannot be read is for its reader to tell."""
    if is_pointer(file):
        message = "is a pointer of Git LFS: its content was never fetched"
        raise error(message, place=str(file), fix=f"git -C {shlex.quote(str(file.parent))} lfs pull")


def is_pointer(file: Path) -> bool:
    try:
        if file.stat().st_size > LONGEST:
            return False
        with file.open("rb") as stream:
            return stream.read(len(START)) == START
    except OSError:
        return False
