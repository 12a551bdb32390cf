"""Schedulers made of a config, and put into a pipeline's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.artifact import SCHEDULER
from compress.engines.torch.runtime import find_class, silent_libraries
from compress.pipelines import INDEX


def made(config: Mapping[str, Any], changed: Mapping[str, Any], place: Path) -> Any:
    """diffusers' own scheduler of the class that `changed` names, with the training schedule of `config` and the settings changed."""
    settings = {name: value for name, value in changed.items() if name != "_class_name"}
    with silent_libraries():
        return find_class("diffusers", changed["_class_name"], place).from_config(dict(config), **settings)


def put(scheduler: Any, folder: Path) -> None:
    """Save a scheduler in a pipeline's folder, and name its class in the index: by a new file, for the old one may be a link."""
    scheduler.save_pretrained(folder / SCHEDULER)
    index = json.loads((folder / INDEX).read_text())
    index[SCHEDULER] = ["diffusers", type(scheduler).__name__]
    (folder / INDEX).unlink()
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
