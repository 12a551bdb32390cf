"""The candidate as the user's own: copied out of the cache whole, so that nothing in the folder leads back there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from compress.artifact import MANIFEST, Artifact, read_json
from compress.errors import ManyProblems, ModelError, Problem, UserError
from compress.events import Emit, Event, silent
from compress.files.hashing import digest_files, list_files
from compress.files.user_paths import expanded
from compress.publishing.model_cards import CARD, has_card

if TYPE_CHECKING:
    from compress.planning.plan import Plan

TAKEN = "give a folder that does not exist yet, or an empty one"


def folders(save: str | Path | None, plans: Sequence[Plan], root: Path) -> list[Path | None]:
    """Where each plan's candidate is to be copied: `save` itself, or a folder in it for each recipe of a matrix.

    Args:
        root: of the cache.

    Raises:
        ManyProblems: a folder cannot be written, or holds something else already; all that are so.
    """
    if not save:
        return [None] * len(plans)
    parent = expanded(save).absolute()
    places = [parent if len(plans) == 1 else parent / plan.recipe.name for plan in plans]
    found = [(place, _problem(place, plan, root)) for place, plan in zip(places, plans, strict=True)]
    if problems := tuple(Problem(f"--save {place}", why, fix) for place, (why, fix) in found if why):
        raise ManyProblems(problems)
    return [*places]


def save(artifact: Artifact, folder: Path, emit: Emit = silent) -> Path:
    """Copy an artifact to `folder`, every file of it as a file of its own, written beside and renamed when it is whole.

    A folder that holds this very artifact already is left as it is.

    Raises:
        UserError: it holds something else, or cannot be written.
    """
    folder = folder.resolve()  # a link to an empty folder, which no folder can take the place of
    if folder.is_dir() and any(folder.iterdir()):
        if _digests(folder, artifact) != _digests(artifact.path, artifact):
            raise UserError("holds something else already", place=str(folder), fix=TAKEN)
        emit(Event("note", "--save", f"{folder} holds this very candidate already, and is left as it is"))
        return folder
    beside = folder.with_name(f".{folder.name}.part")
    try:
        if beside.exists():  # of a run that was cut off
            shutil.rmtree(beside)
        _copy(artifact.path, beside)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        message = f"the candidate cannot be copied here: {error.strerror or error}"
        fix = "free room, or give another folder with --save; the stages are cached"
        raise UserError(message, place=str(folder), fix=fix) from error
    return folder


def _digests(folder: Path, artifact: Artifact) -> dict[str, str]:
    """Of all files but a model card, which tells in a saved folder what was measured."""
    found = digest_files(folder)
    return {name: one for name, one in found.items() if name != CARD or not has_card(artifact)}


def _copy(source: Path, target: Path) -> None:
    for relative in list_files(source):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target / relative)  # what a link leads to, and no link
        with (target / relative).open("rb") as stream:
            os.fsync(stream.fileno())


def _problem(folder: Path, plan: Plan, root: Path) -> tuple[str, str]:
    """Why a candidate cannot be copied there, and what to do instead; "" where it can."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # whatever no file may be called
        if folder.is_relative_to(root.absolute()):
            return "lies in the cache, which takes away what was not used for long", "give a folder of your own"
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            return "is a file" if folder.exists() else "is a link that leads nowhere", TAKEN
        if folder.is_dir() and any(folder.iterdir()) and not _holds(folder, plan):
            return "is not empty", TAKEN
        above = next(p for p in (folder, *folder.parents) if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            return f"cannot be written: {above} does not let us", "give a folder that you may write"
        Path(mkdtemp(prefix=".pare", dir=above)).rmdir()  # file systems of the kernel's own say yes, and mean no
    except (OSError, ValueError) as error:  # a name too long, a null byte
        return f"cannot be written: {getattr(error, 'strerror', None) or error}", "give another folder"
    return "", ""


def _holds(folder: Path, plan: Plan) -> bool:
    """Whether the candidate of this plan was copied there before, so that the same command may run again."""
    if not (plan.nodes or plan.source.making) or not (folder / MANIFEST).is_file():
        return False
    try:
        lineage = read_json(folder / MANIFEST).get("lineage")
    except ModelError:
        return False
    last = lineage[-1] if isinstance(lineage, list) and lineage else None
    return isinstance(last, dict) and last.get("key") == (plan.nodes[-1].key if plan.nodes else plan.source.key)
