"""What a stage is tried on, one file a task under the task's own name: its record `SPECIMEN`, found as the task is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """A tiny model of a task, and data for it.

    model: makes it in a folder, and says where it lies. calibration, train: make sources of items in a folder, or name them.
    built: parameters of a stage that builds engines, where its own would build more than shows its contract.
    quantized: of a stage that packs weights in torch: what its library cannot take of the model.
    """

    model: Callable[[Path], Path]
    calibration: Callable[[Path], str]
    train: Callable[[Path], str]
    built: Mapping[str, Any] = field(default_factory=dict)
    quantized: Mapping[str, Any] = field(default_factory=dict)


def find_specimen(task: str) -> Specimen:
    """The specimen of a task; it lies in the file of that name."""
    found = importlib.import_module(f"{__name__}.{task}").SPECIMEN
    assert isinstance(found, Specimen)
    return found
