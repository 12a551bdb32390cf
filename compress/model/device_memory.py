"""Whose memory of a GPU is counted: torch knows what it allocates, and nothing of what an engine takes by itself."""

from __future__ import annotations

from compress.artifact import CHOSEN, Artifact
from compress.catalogue import find_engine


def uncounted(artifact: Artifact) -> str:
    """Which engines of an artifact take memory of a GPU that torch does not count, in words; or ""."""
    formats = {part.format for part in artifact.components.values()} - {CHOSEN}
    titles = sorted(engine.title for engine in map(find_engine, formats) if not engine.torch_memory)
    takes = "takes" if len(titles) == 1 else "take"
    return f"{' and '.join(titles)} {takes} memory of its own, which torch does not count" if titles else ""
