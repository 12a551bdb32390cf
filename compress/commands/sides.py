"""The two sides of an evaluation and its data, by what they are named: a model folder, an artifact, `zoo://…`, a folder of images or an
endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from compress.artifact import Artifact
from compress.catalogue import find_task, metric_names, task_names
from compress.commands.wanted import Wanted
from compress.data.items import Data
from compress.endpoints.address import is_address
from compress.endpoints.finding import find_endpoint
from compress.endpoints.served import Served
from compress.errors import DataError, ManyProblems, ModelError, UserError
from compress.events import Emit
from compress.files.user_paths import expanded
from compress.sources.data import as_captions
from compress.sources.units import distinct, open_units
from compress.store.cache import Cache

GENERATING = next(name for name in task_names() if find_task(name).folders)  # of two folders of images


def open_sides(
    candidate: str, baseline: str, wanted: Wanted, store: Cache, emit: Emit
) -> tuple[list[Artifact], Data | None]:
    """Both sides, and the data.

    Raises:
        UserError: all that is wrong with them, together with what metrics name on disk.
    """
    errors: list[UserError] = []
    sides: list[Artifact] = []
    data = None
    try:
        sides = _sides(candidate, baseline, wanted, store, emit)
    except UserError as error:
        errors.append(error)
    try:
        kind = find_task(sides[0].task).data if sides else None
        data = open_units(wanted.data, Path(), kind, store.root / "digests") if wanted.data else None
        if data and data.kind == "texts" and kind == "captioned_images" and any(isinstance(s, Served) for s in sides):
            data = as_captions(data)
    except UserError as error:
        errors.append(error)
    misplaced = tuple(wanted.misplaced()) if errors else ()
    if len(errors) == 1 and not misplaced:
        raise errors[0]
    if errors:
        raise ManyProblems((*(problem for error in errors for problem in error.problems), *misplaced))
    return sides, data


def _sides(candidate: str, baseline: str, wanted: Wanted, store: Cache, emit: Emit) -> list[Artifact]:
    """Both sides. A folder of images does what the model beside it does, if that generates; an endpoint what is asked of it."""
    from evaluation.preflight.image_folders import describe_generated, is_generated

    both = {"candidate": candidate, "baseline": baseline}
    folders = {named: expanded(named) for named in both.values() if not is_address(named)}
    models = {named: _model(named, store, emit) for named, folder in folders.items() if not is_generated(folder)}
    beside = [side.task for side in models.values() if not find_task(side.task).fits(("images",))]
    task = next(iter(beside), GENERATING)
    found = {
        side: models.get(named) or describe_generated(folders[named], task)
        for side, named in both.items()
        if named in folders
    }
    served = {side: find_endpoint(named, side, wanted.timeout) for side, named in both.items() if side not in found}
    if served:
        other = next(iter(found.values()), None)
        shared = other.task if other else _asked_of(next(iter(served.values())), wanted)
        found |= {side: replace(one, task=shared) for side, one in served.items()}
    return [found[side] for side in both]


def _asked_of(served: Served, wanted: Wanted) -> str:
    """The task of two endpoints."""
    from evaluation.preflight.endpoint_checks import task_served

    metrics = [name for name in (*wanted.metrics, *wanted.gates) if name in metric_names()]
    data = None
    with suppress(DataError):  # which is reported where they are opened for good
        data = open_units(wanted.data, Path()) if wanted.data else None
    return task_served(metrics, data, served)


def _model(named: str, store: Cache, emit: Emit) -> Artifact:
    from compress.making.ready import ready
    from compress.sources.models import find_source

    try:
        found = find_source(named, Path(), store.root / "digests")
    except ModelError as error:
        raise _other_images(expanded(named)) or error from None
    return replace(ready(found, store, emit).artifact, digest=found.key)


def _other_images(folder: Path) -> ModelError | None:
    """The error of a folder that holds no model, and images of a format that is not read."""
    from compress.data.images import SUFFIXES
    from evaluation.preflight.image_folders import MODEL_FILES, OTHER_SUFFIXES

    if not folder.is_dir() or any((folder / name).is_file() for name in MODEL_FILES):
        return None
    counts = Counter(file.suffix.lower() for file in folder.rglob("*") if file.suffix.lower() in OTHER_SUFFIXES)
    if not counts:
        return None
    message = ", ".join(f"{count} {suffix} files" for suffix, count in counts.most_common())
    read = ", ".join(SUFFIXES)
    return ModelError(f"holds {message}, and images are read from {read}", place=str(folder), fix="save them as PNG")


def own_captions(sides: Sequence[Artifact]) -> Data | None:
    """Where one side is a folder of images, what its images are of; two folders each have their own."""
    from evaluation.preflight.image_folders import captions_of, is_folder

    folders = [side.path for side in sides if is_folder(side)]
    return distinct(captions_of(folders[0])) if len(folders) == 1 else None
