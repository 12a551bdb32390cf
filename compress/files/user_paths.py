"""Paths as their users write them: `~` is a home. `~name` where nobody has that name is a file like any other, as it is to a shell."""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = "::"  # between a checkpoint in one file and the folder of its configs


def file_and_config(reference: str) -> tuple[str, str]:
    """What a reference to a model names: a folder or the like and "", or of `FILE::CONFIG` a checkpoint in one file and what its configs
    are taken from."""
    file, _, config = reference.partition(BESIDE)
    return file, config


def expanded(path: str | Path) -> Path:
    """A path with the home that it begins with, if there is one."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a null byte, which whoever opens it tells
        return Path(path)
