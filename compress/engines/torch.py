"""The torch engine: the component as its own library loads it. Every other engine is held against this one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.errors import ModelError

LIBRARIES = ("diffusers", "transformers")


def find_class(library: str, name: str, place: Path) -> Any:
    """The class `name` of diffusers or transformers.

    Raises:
        ModelError: the model asks for code of its own, or for a class that the installed version does not have.
    """
    with silent_libraries():  # what a class imports may warn of parts that pare does not use
        found = getattr(importlib.import_module(library), name, None) if library in LIBRARIES else None
    if found is None:
        raise ModelError(
            f"needs the class {library}.{name}, which is not there",
            place=str(place),
            fix="upgrade diffusers and transformers, or use a model made of their own classes",
        )
    return found


def load_component(folder: Path, library: str, kind: str, dtype: torch.dtype | None, device: str) -> torch.nn.Module:
    """One component of a pipeline, ready to be called. `dtype` None keeps that of the checkpoint.

    Raises:
        ModelError: its class is unknown or its weights do not read.
    """
    option = {"torch_dtype": dtype} if library == "diffusers" else {"dtype": dtype or "auto"}
    return _load(find_class(library, kind, folder), folder, device, {k: v for k, v in option.items() if v is not None})


def load_language_model(folder: Path, kind: str, dtype: torch.dtype | None, device: str) -> torch.nn.Module:
    """A causal language model of transformers. `dtype` None keeps that of the checkpoint.

    Raises:
        ModelError: its class is unknown or its weights do not read.
    """
    return _load(find_class("transformers", kind, folder), folder, device, {"dtype": dtype or "auto"})


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Turn off the progress bars and warnings of diffusers and transformers for a while: events tell what pare does."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    bars = transformers_logging.is_progress_bar_enabled()
    for library, _ in levels:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _load(kind: Any, folder: Path, device: str, options: dict[str, Any]) -> torch.nn.Module:
    try:
        with silent_libraries():
            model: torch.nn.Module = kind.from_pretrained(str(folder), **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{kind.__name__} does not load: {error}", place=str(folder), fix="save the model again"
        ) from error
    return model.to(device).eval()
