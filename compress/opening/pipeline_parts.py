"""A diffusers pipeline put together part by part, engine modules where torch components were: `from_pretrained` would refuse modules that
are not of the classes it knows."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from compress.algorithms.tensors import device_of
from compress.artifact import Artifact, read_json
from compress.engines.torch.runtime import find_class, stored_dtype
from compress.errors import ModelError
from compress.machine.devices import Opening
from compress.model.hook_settings import loaded_to
from compress.opening.lean import lean_pipeline
from compress.pipelines.index import INDEX, LEFT_OUT


def natural_dtype(artifact: Artifact) -> torch.dtype:
    """The checkpoint's own dtype, read off the main component's weights; float32 where an engine takes part."""
    if any(c.format != "torch" for c in artifact.components.values()) or not artifact.main:
        return torch.float32
    return stored_dtype(artifact.folder(artifact.main))


def assembled(artifact: Artifact, opening: Opening) -> Any:
    """The pipeline, of the class that its index names.

    Args:
        opening: of each component, its number type filled in.

    Raises:
        ModelError: a part does not load.
    """
    path = artifact.path
    index = read_json(path / INDEX)
    kind = find_class("diffusers", str(index["_class_name"]), path / INDEX)
    accepted = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if name.startswith("_") or name not in accepted:
            continue
        parts[name] = _part(artifact, opening, name, *entry) if isinstance(entry, list) else entry
    if "requires_safety_checker" in accepted:
        parts["requires_safety_checker"] = False
    if "add_watermarker" in accepted:
        parts["add_watermarker"] = False
    return lean_pipeline(kind, parts, device_of(opening)) if artifact.settings.lean else kind(**parts)


def _part(artifact: Artifact, opening: Opening, name: str, library: str | None, kind: str | None) -> Any:
    if library is None or kind is None or name in LEFT_OUT:
        return None
    folder = artifact.path / name
    if name not in artifact.components:  # a scheduler or a tokenizer
        try:
            return find_class(library, kind, folder).from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{kind} does not load: {error}", place=str(folder), fix="save the pipeline again"
            ) from error
    component = artifact.components[name]
    engine = importlib.import_module(f"compress.engines.{component.format}.runtime")
    return engine.load_component(artifact.folder(name), library, component.kind, loaded_to(artifact, opening))
