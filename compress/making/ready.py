"""Models that are made before the first stage, each once and kept like any stage's work. What is made is the source from then on: of stages,
of teachers, of the baseline."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from compress.adapters.fusing import Fusion, fuse, reported
from compress.artifact import Artifact
from compress.errors import ManyProblems
from compress.events import Emit, Event
from compress.files.locks import hold
from compress.making.converting import convert
from compress.sources import originals
from compress.sources.models import Source, fetch_weights
from compress.store.cache import Cache, disk_errors

WARNINGS = "warnings"  # among the notes of what was made


def base_of(source: Source) -> Source:
    """The model before adapters."""
    return source.making.base if isinstance(source.making, Fusion) else source


def disk_bytes(source: Source, cache: Cache) -> int:
    """What making it will write, bytes."""
    if source.making is None or cache.has(source.key):
        return 0
    own = sum(f.stat().st_size for f in source.artifact.path.rglob("*") if f.is_file())
    return own + (disk_bytes(source.making.base, cache) if isinstance(source.making, Fusion) else 0)


def memory_bytes(source: Source, cache: Cache) -> int:
    """What making it takes of the memory, bytes."""
    base = base_of(source)
    if not isinstance(base.making, originals.Conversion) or any(cache.has(one.key) for one in (source, base)):
        return 0
    return base.making.memory_bytes


def ready(source: Source, cache: Cache, emit: Emit) -> Source:
    """The same source with its weights on this disk: those of a hub model are fetched, a checkpoint converted, and adapters fused, once.

    Raises:
        ModelError: the hub does not give them, or diffusers does not read the checkpoint.
        ManyProblems: an adapter does not fit weights that came only now.
        UserError: what was fused is not finite.
    """
    if source.making is None:
        return fetch_weights(source)
    stage = source.making.stage
    cache.prepare()

    def note(message: str) -> None:
        emit(Event("note", stage, message))

    def warn(message: str) -> None:
        emit(Event("warning", stage, message))

    with disk_errors(cache.root), cache.locked(source.key, lambda: note("another run is at work on it; waiting")):
        found = cache.get(source.key, warn)
        if found is not None:
            for message in cache.facts(source.key).get("notes", {}).get(WARNINGS, ()):  # as true as when it was made
                warn(message)
        else:
            found = _made(_grounded(source, cache, emit), cache, emit)
    return Source(found, source.key)


def _grounded(source: Source, cache: Cache, emit: Emit) -> Source:
    """The same source, what it will be made of on this disk."""
    if not isinstance(source.making, Fusion):
        return fetch_weights(source)
    fusion = replace(source.making, base=ready(source.making.base, cache, emit))
    if problems := tuple(reported(replace(fusion, base=replace(fusion.base, remote="")))):
        raise ManyProblems(problems)
    return replace(source, making=fusion)


def _made(source: Source, cache: Cache, emit: Emit) -> Artifact:
    """Make it in a folder beside, and move that into the cache when it is whole: what is cut off leaves nothing."""
    assert source.making is not None
    stage, key = source.making.stage, source.key
    emit(Event("started", stage, facts={"key": key}))
    began, out = time.monotonic(), cache.fresh()
    working = hold(out)
    try:
        warnings = _write(source, out)
        seconds = round(time.monotonic() - began, 3)
        notes = {WARNINGS: warnings} if warnings else {}
        made = cache.put(key, out, {"stage": stage, "seconds": seconds, "notes": notes})
    finally:
        shutil.rmtree(out, ignore_errors=True)
        if working:
            working.release()
    for message in warnings:
        emit(Event("warning", stage, message))
    emit(Event("finished", stage, facts={"key": key, "seconds": seconds}))
    return made


def _write(source: Source, out: Path) -> list[str]:
    """Write it; returns what somebody must hear of it."""
    if isinstance(source.making, Fusion):
        return [
            f"adapter {one.name} changes no weight: its updates are 0" for one in fuse(source.making, source.key, out)
        ]
    if source.making:
        convert(source.making, source.key, out)
    return []
