"""What a plan warns of: it can run, and may not do what was meant. Told by `check` and `plan`, and by a run before its first stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from compress.adapter_names import MAGNITUDE
from compress.fusing import Fusion
from compress.recipe import Recipe
from compress.sources import Source
from compress.step_checks import beyond_training


def cautions(recipe: Recipe, source: Source, stages: Iterable[str]) -> Iterator[str]:
    """What somebody must hear of a plan, each with what to do about it.

    Args:
        stages: what the stages tell of themselves.
    """
    if source.fusion:
        yield from _idle_adapters(source.fusion)
    if far := beyond_training(source.artifact, recipe.evaluate, recipe.evaluate.metrics):
        yield far
    yield from stages


def _idle_adapters(fusion: Fusion) -> Iterator[str]:
    """Adapters that are multiplied by nothing."""
    for adapter, place in zip(fusion.adapters, fusion.places, strict=True):
        if adapter.strength == 0 and not any(MAGNITUDE in name for name in adapter.header.tensors):
            head = f"{place}: " if place else ""
            yield f"{head}adapter {adapter.name} has scale 0 and changes no weight: give another scale, or leave it out"
