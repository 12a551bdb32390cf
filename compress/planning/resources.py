"""Disk and memory that a plan takes, and whether this machine has them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compress.artifact import Artifact, weight_files
from compress.catalogue import Stage, find_metric
from compress.data.items import Data
from compress.errors import Problem
from compress.files.hashing import list_files
from compress.params import Params
from compress.quantization import sizes
from compress.quantization.sizes import held_bytes
from compress.recipe.values import EvalSpec

# Of each of two processes, beside their models, with what they import: by whether the model writes text.
PROCESS_BYTES = {True: 550_000_000, False: 750_000_000}


def stage_bytes(stage: Stage, artifact: Artifact, expected: Artifact, touched: tuple[str, ...], copies: bool) -> int:
    """What a stage writes: the weights of what it touches, and a copy of the rest where it cannot link.

    Only entries of the cache are linked to one another; a stage that continues the source copies it.

    Args:
        expected: what it will leave.
    """
    anew = {file for name in touched for file in weight_files(artifact.folder(name))} if stage.makes else set()
    files = {artifact.path / file for file in list_files(artifact.path)} - anew if copies else set()
    written = sum(held_bytes(expected, name) for name in touched) if stage.makes else 0
    return 1_000_000 + sum(file.stat().st_size for file in files) + written


def stage_memory(stage: Stage, artifact: Artifact, expected: Artifact, at_work: int) -> int:
    """Memory of a stage beside the libraries of its processes: while it works, or while what it left is opened again.

    Args:
        at_work: as it says itself; 0: it does not.
    """
    # At worst what it is given, an export of it and its quantized copy at once.
    at_work = at_work or (3 * opened_bytes(artifact) if stage.makes else 0)
    return max(at_work, _opened_as_stored(expected))


def evaluation_memory(spec: EvalSpec, source: Artifact, candidate: Artifact) -> int:
    """Memory of both sides of a comparison: one after the other, unless they are timed in turns or compared call by call."""
    metrics = [find_metric(name) for name in spec.metrics]
    wide = spec.baseline.dtype == "float32"
    sides = (opened_bytes(source) if wide else _opened_as_stored(source), _opened_as_stored(candidate))
    return sum(sides) if any(one.timed or "language_model" in one.needs for one in metrics) else max(sides)


def _opened_as_stored(artifact: Artifact) -> int:
    return sum(sizes.opened_bytes(artifact, name) for name in artifact.components)


def items_bytes(item_bytes: Mapping[str, int], params: Params, data: Data | None) -> dict[str, int]:
    """What items of the training data take of the disk, by the parameter that says how many there are at most.

    Args:
        data: which may have fewer.
    """
    there = data.count if data is not None and data.count >= 0 else None
    most = {name: int(getattr(params, name)) for name in item_bytes}
    return {name: each * (most[name] if there is None else min(most[name], there)) for name, each in item_bytes.items()}


def opened_bytes(artifact: Artifact) -> int:
    """Memory of a model that is opened in float32 beside the one that a stage works on."""
    return sum(4 * sizes.parameters(artifact, name) for name in artifact.components)


def disk_at_most(steps: Iterable[tuple[int, int]]) -> int:
    """Disk of a whole plan at its worst moment, bytes, from what each stage takes while it works and what of that it leaves."""
    kept = most = 0
    for working, left in steps:
        most = max(most, kept + working)
        kept += left
    return most


def memory_at_most(held: Iterable[int], text: bool) -> int:
    """Memory of a whole plan, bytes, from that of its stages and of its evaluation.

    Args:
        text: whether the model writes text.
    """
    return 2 * PROCESS_BYTES[text] + max(held)  # two processes: ours, and the checker


@dataclass(frozen=True)
class Share:
    """What one step takes of the disk, and what of that goes with each parameter that counts items."""

    step: str
    disk_bytes: int
    by_items: Mapping[str, int] = field(default_factory=dict)


def problems(disk_bytes: int, memory_bytes: int, root: Path, place: str, shares: Sequence[Share] = ()) -> list[Problem]:
    """What a plan needs and this machine does not have.

    Args:
        memory_bytes: 0 where nothing runs.
        root: of the cache.
        place: of the model in the recipe.
        shares: of the steps.
    """
    below = next(p for p in (root, *root.parents) if p.exists())
    free, memory = shutil.disk_usage(below).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = []
    if disk_bytes > free:
        most, less = _most(shares)
        message = f"needs about {_size(disk_bytes)} of disk{most}, and {_size(free)} are free"
        found.append(Problem(str(root), message, f"free room, {less}or give another folder with --cache"))
    if memory_bytes > memory:
        message = f"needs about {_size(memory_bytes)} of memory, and this machine has {_size(memory)}"
        found.append(Problem(place, message, "use a larger machine or a smaller model"))
    return found


def _most(shares: Sequence[Share]) -> tuple[str, str]:
    """Which step takes most of the disk, and what of it would take less, in words."""
    largest = max(shares, key=lambda share: share.disk_bytes, default=None)
    if largest is None:
        return "", ""
    name = max(largest.by_items, key=lambda name: largest.by_items[name], default="")
    counted = 2 * largest.by_items.get(name, 0) > largest.disk_bytes
    message = f", {_size(largest.disk_bytes)} of it for {largest.step}"
    return message, f"give {largest.step} fewer {name}, " if counted else ""


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
