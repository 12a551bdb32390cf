"""Schedulers made of a config, and put into a pipeline's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.artifact import SCHEDULER
from compress.engines.torch.runtime import find_class, silent_libraries
from compress.pipelines.index import name_part
from compress.pipelines.schedulers import read_class


def made(config: Mapping[str, Any], changed: Mapping[str, Any], place: Path) -> Any:
    """diffusers' own scheduler of the class that `changed` names, with the training schedule of `config` and the settings changed.

    A class that diffusers knows no compatible others of warns, whenever it is opened, of all settings of another that it is saved
    with: it is given those that it takes."""
    settings = {name: value for name, value in changed.items() if name != "_class_name"}
    kind, known = find_class("diffusers", changed["_class_name"], place), read_class(changed["_class_name"])
    given = dict(config)
    if known and not getattr(kind, "_compatibles", ()):
        given = {name: value for name, value in config.items() if name in known.defaults or name.startswith("_")}
    with silent_libraries():
        return kind.from_config(given, **settings)


def put(scheduler: Any, folder: Path) -> None:
    """Save a scheduler in a pipeline's folder, and name its class in the index."""
    with silent_libraries():
        scheduler.save_pretrained(folder / SCHEDULER)
    name_part(folder, SCHEDULER, type(scheduler).__name__)
