"""A checkpoint that a library packed and saved, put in the place of the one that it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.artifact import read_json

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def write_packing(folder: Path, before: Path, packing: Mapping[str, Any]) -> None:
    """Write the config of a packed checkpoint: the one from before, and how its weights are packed. What a library makes of the rest
    is its own, such as its version."""
    config = {**read_json(before / CONFIG), "quantization_config": packing}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def move_saved(saved: Path, before: Path, folder: Path, *more: str) -> None:
    """Move a saved checkpoint's weights and config into a model's folder, and copy how it generates, which no change of weights touches.

    Args:
        more: names of further files that are moved where they are there.
    """
    for pattern in (*WEIGHTS, CONFIG, *more):
        for file in sorted(saved.glob(pattern)):
            shutil.move(file, folder / file.name)
    if (before / GENERATION).is_file():
        shutil.copyfile(before / GENERATION, folder / GENERATION)
