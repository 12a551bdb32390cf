"""Locks between processes. The system frees each when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCKS = "locks"


def lock_of(folder: Path, key: str) -> Path:
    """What is locked for `key` of a folder: in a cache a file among its locks, elsewhere the folder itself."""
    locks = folder.parent / LOCKS
    return locks / key if locks.is_dir() else folder


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of what `lock_of` gives. `waiting` is called if another holds it.

    Raises:
        FileNotFoundError: it is a folder, and there is none.
    """
    descriptor = _open(path)
    try:
        if not _taken(descriptor, fcntl.LOCK_EX):
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def tried(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock or the file; it is held within if so."""
    descriptor = _open(path)
    try:
        yield _taken(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


class Hold:
    """A file that is in use, by any number of holders, until each releases it or goes."""

    def __init__(self, descriptor: int) -> None:
        self._release = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        self._release()


def hold(path: Path) -> Hold | None:
    """Say that the file at `path` is in use; None where there is none any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    held = Hold(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        there = os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        there = False
    return held if there else None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT if path.parent.name == LOCKS else os.O_RDONLY, 0o666)


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
