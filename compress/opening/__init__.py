"""Artifacts opened for use: one file a task, under the task's own name. It knows the library's pipeline or model; engines know
the formats.

`models.py` says what every opened model can do; this file opens it. It imports torch only when something is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.catalogue import find_engine, find_task
from compress.errors import Refusal, UserError
from compress.machine.devices import AS_STORED, CPU, Opening, kind_of
from compress.model.hook_settings import unknown_hooks
from compress.opening.models import ImageModel, LanguageModel, OpenModel
from compress.pipelines.index import library_of

if TYPE_CHECKING:
    import torch

    from compress.tasks import Observable


def open_task(artifact: Artifact, opening: Opening = AS_STORED) -> OpenModel:
    """Load an artifact, each component with the engine of its format.

    Raises:
        ModelError: a component does not load.
        UserError: the dtype has no such name, torch has no such device here, an engine does not run there, or the artifact has
            settings that this pare cannot apply.
    """
    _refuse(artifact, opening)
    opened: OpenModel = importlib.import_module(f"compress.opening.{artifact.task}").open_model(artifact, opening)
    if artifact.adapters and opening.adapters:
        from compress.opening.kept_adapters import load_kept

        load_kept(opened)
    if artifact.settings.hook:
        from compress.opening.hooks import apply_hooks

        apply_hooks(opened)
    return opened


def open_images(artifact: Artifact, opening: Opening = AS_STORED) -> ImageModel:
    """As `open_task`, of a task that yields images."""
    _expect(artifact, "images")
    return cast("ImageModel", open_task(artifact, opening))


def open_language(artifact: Artifact, opening: Opening = AS_STORED) -> LanguageModel:
    """As `open_task`, of a task that yields a language model."""
    _expect(artifact, "language_model")
    return cast("LanguageModel", open_task(artifact, opening))


def open_component(artifact: Artifact, name: str, opening: Opening = AS_STORED) -> torch.nn.Module:
    """One component by itself, with the engine of its format.

    Raises:
        ModelError: it does not load.
        UserError: as `open_task`.
    """
    _refuse(artifact, opening)
    part, folder = artifact.components[name], artifact.folder(name)
    engine = importlib.import_module(f"compress.engines.{part.format}.runtime")
    if name == LANGUAGE_MODEL:
        module: torch.nn.Module = engine.load_language_model(folder, part.kind, opening)
    else:
        module = engine.load_component(folder, library_of(artifact.path, name), part.kind, opening)
    return module


def _expect(artifact: Artifact, need: Observable) -> None:
    if find_task(artifact.task).fits((need,)):
        raise UserError(
            f"a model of {artifact.task} gives no {need}", place=str(artifact.path), fix="give another model"
        )


def _refuse(artifact: Artifact, opening: Opening) -> None:
    """Raises a UserError where an artifact cannot be opened so, known before anything is loaded."""
    if unknown := unknown_hooks(artifact):
        raise UserError(
            f"it is meant to run with {', '.join(unknown)}, which this pare does not apply",
            place=str(artifact.path),
            fix="upgrade pare, or build it without that stage",
        )
    kind = kind_of(opening.device)
    for name, part in artifact.components.items():
        engine = find_engine(part.format)
        if opening.device != CPU and kind not in engine.devices:
            raise UserError(
                f"`{name}` is for {engine.title}, which runs on {', '.join(sorted(engine.devices))}, not on `{opening.device}`",
                place=str(artifact.path),
                fix="load the model on cpu, or build another engine",
            )
        if opening.device != CPU and (lacking := engine.lacks(opening.device)):
            remedy = f", or {lacking.fix}" if isinstance(lacking, Refusal) else ""
            fix = f"load the model on cpu, or give the torch model{remedy}"
            raise UserError(f"`{name}`: {lacking}, not for `{opening.device}`", place=str(artifact.path), fix=fix)
        if engine.unfit and (why := engine.unfit(artifact.folder(name), opening.device)):
            raise UserError(
                f"`{name}`: {why}",
                place=str(artifact.path),
                fix="run the recipe again: it builds the engine anew; or give the device that it was compiled for",
            )
