"""The files of a model's folder that hold its licence."""

from __future__ import annotations

from pathlib import Path

NAMES = "LICEN[CS]E*"


def licence_files(folder: Path) -> tuple[Path, ...]:
    """By name; a folder of licences (LICENSES/) is none."""
    return tuple(file for file in sorted(folder.glob(NAMES)) if file.is_file())
