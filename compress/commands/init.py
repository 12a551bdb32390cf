"""`pare init`: a first recipe for a model, written where none lies yet."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from compress.errors import UserError
from compress.files.user_paths import BESIDE, expanded, file_and_config
from compress.planning.plan import UNHASHED
from compress.proposing.choices import Goal
from compress.proposing.machine import Machine, this_machine
from compress.proposing.propose import Proposal, propose
from compress.proposing.writing import ROLES, Asked
from compress.sources.models import Source, find_source, look_at
from compress.sources.units import open_units
from compress.store.cache import Cache

NAMES = {
    "train": ("train",),
    "calibration": ("calibration", "validation", "valid", "val", "dev"),
    "evaluate": ("evaluate", "test", "eval"),
}


def init(
    model: str,
    data: Sequence[str],
    goal: str,
    features: str,
    out: Path | None,
    cache: Cache,
    machine: Machine | None = None,
) -> tuple[Path, Proposal]:
    """Write a recipe for a model; the file and what it holds.

    Args:
        data: `role=source`, or one source: a folder or zoo set that has a part a role, or what is evaluated on.
        out: the file; default: the model's name, in the current folder.

    Raises:
        UserError: the file is there already, or the model or its data do not read.
    """
    wanted = {name: name for name in get_args(Goal)}.get(goal)
    if wanted is None:
        raise UserError(f"--goal {goal} is none", fix=f"give {' or '.join(get_args(Goal))}")
    file = out or Path(f"{name_of(model)}.yaml")
    if file.exists():
        raise UserError(
            "is there already, and nothing is overwritten", place=str(file), fix="give another file with --out"
        )
    here = Path.cwd()
    memory = cache.root / "digests"
    seen = look_at(model, here, memory)
    source = Source(seen, UNHASHED) if seen else find_source(model, here, memory)
    sources = calibrated(roles(data, here))
    units = open_units(sources["evaluate"], here, memory=memory).count if "evaluate" in sources else 0
    start = file.absolute().parent
    placed = {role: moved(one, start) for role, one in sources.items()}
    asked = Asked(fitting(file.stem), moved(model, start), placed, units, moved(features, start) if features else "")
    found = propose(asked, source, file, machine or this_machine(), wanted, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as writing:
        writing.write(found.text)
    return file, found


def shown(file: Path, found: Proposal) -> str:
    """What was written, and how to go on."""
    lines = [f"{file}:", *(f"  {step.stage:<22} {step.why}" for step in found.steps)]
    lines += [f"  left out: {title}: {why}" for title, why in found.left]
    return "\n".join((*lines, f"next: pare plan {file}, then pare run {file}"))


def name_of(model: str) -> str:
    """What a recipe for a model is called: the last part of its name, without a revision."""
    model, config = file_and_config(model)
    model = model.removesuffix(".safetensors") if config else model
    last = model.rstrip("/").rpartition("/")[2].partition("@")[0] if "://" in model else Path(model).resolve().name
    return fitting(last)


def fitting(name: str) -> str:
    """A name as a recipe can have it, which names files too."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-_")[:100] or "recipe"


def roles(data: Sequence[str], here: Path) -> dict[str, str]:
    """By role, the sources that were given.

    Raises:
        UserError: a role is none, or is given twice.
    """
    found: dict[str, str] = {}
    for one in data:
        role, named, source = one.partition("=")
        given = (
            {role: source}
            if named and role in ROLES
            else parts(one, here)
            if not named or expanded(one).exists()
            else {}
        )
        if not given:
            raise UserError(f"--data {one}: {role} is no role", fix=f"give {', '.join(f'{r}=…' for r in ROLES)}")
        if twice := sorted(given.keys() & found.keys()):
            raise UserError(f"--data gives {twice[0]} twice", fix="name each role once")
        found |= given
    return found


def calibrated(sources: dict[str, str]) -> dict[str, str]:
    """Training data calibrate as well, where nobody gives others: it takes a few of them, and changes no verdict."""
    return {"calibration": sources["train"], **sources} if "train" in sources else sources


def parts(source: str, here: Path) -> dict[str, str]:
    """A source that nobody gave a role: its part for each, as folders and files are usually called, or all of it to evaluate on."""
    if source.startswith("zoo://") and source.count("/") == 2:
        return {"train": f"{source}/train", "calibration": f"{source}/validation", "evaluate": f"{source}/test"}
    folder = here / expanded(source)
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {}
    for role, names in NAMES.items():
        if one := next((f for name in names for f in inside if f.stem == name), None):
            found[role] = f"{source.rstrip('/')}/{one.name}"
    return found or {"evaluate": source}


def moved(name: str, start: Path) -> str:
    """A name of the command line as a recipe in another folder gives it."""
    file, config = file_and_config(name)
    if config:
        return f"{moved(file, start)}{BESIDE}{moved(config, start)}"
    if "://" in name or Path(name).expanduser().is_absolute():
        return name
    return f"./{Path(os.path.relpath(name, start)).as_posix()}"
