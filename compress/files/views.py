"""Folders of links that stand for a model, each made once under the key of what it shows, by whoever plans it first. Several runs may make one at
the same time, and while some read it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from compress.files.locks import locked

VIEWS = "views"  # below the cache


def view(root: Path | None, key: str, fill: Callable[[Path], None]) -> Path:
    """The folder under a key.

    Args:
        root: of the cache in which it is; None: the system's temporary folder, in one of this user's.
        fill: writes what is to be in it into a folder that is not there yet.
    """
    place = (root or Path(tempfile.gettempdir()) / f"pare-{os.getuid()}") / VIEWS / key
    if _whole(place):
        return place
    made = place.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        fill(made)
        _put(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def _put(made: Path, place: Path) -> None:
    """Give a folder its place. A whole one that is there stays: others read it. One with links to nothing gives way, one run at a time."""
    try:
        made.rename(place)
    except OSError:
        with locked(place.parent, lambda: None):
            if not _whole(place):
                shutil.rmtree(place, ignore_errors=True)
                try:
                    made.rename(place)
                except OSError:
                    if not _whole(place):  # else a run that had not seen it was first
                        raise


def _whole(place: Path) -> bool:
    """Whether all is there that it shows."""
    return place.is_dir() and all(one.exists() for one in place.rglob("*"))
