"""Paths as their users write them: `~` is a home. `~name` where nobody has that name is a file like any other, as it is to a shell."""

from __future__ import annotations

import os
from pathlib import Path

SERVED = ("http://", "https://")  # what addresses of models begin with that servers have
BESIDE = "::"  # between a checkpoint in one file and the folder of its configs


def file_and_config(reference: str, base: Path = Path()) -> tuple[str, str]:
    """What a reference to a model names: a folder or the like and "", or of `FILE::CONFIG` a checkpoint in one file and what its configs
    are taken from. A folder whose own name has `::` in it is that folder, and so is an address, whose host may have (`http://[::1]/v1`).

    Args:
        base: where a path begins that is not whole.
    """
    file, beside, config = reference.partition(BESIDE)
    if not beside or reference.lower().startswith(SERVED) or _is_folder(base / expanded(reference)):
        return reference, ""
    return file, config


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def expanded(path: str | Path) -> Path:
    """A path with the home that it begins with, if there is one."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a null byte, which whoever opens it tells
        return Path(path)
