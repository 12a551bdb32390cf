"""Two sides of a comparison that generate different sizes: neither their images nor their speeds are alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.pipelines.image_sizes import SIDES, own_size
from compress.planning.calls import planned_calls
from compress.recipe.values import Recipe

if TYPE_CHECKING:
    from compress.planning.nodes import Node


def sizes_apart(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> Iterator[str]:
    """That a recipe's baseline and its candidate generate different sizes, with what to write instead."""
    baseline, candidate = (_size(source, call) for call in planned_calls(recipe, source, nodes))
    if baseline and candidate and baseline != candidate:
        (height, width), (high, wide) = baseline, candidate
        message = f"the baseline generates images {width} wide and {height} high, and the candidate {wide} wide and {high} high"
        fix = f"write height: {high} and width: {wide} under evaluate.baseline to compare like with like"
        yield f"{message}, which no metric tells from better or worse: {fix}"


def _size(artifact: Artifact, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Height and width of what a call generates, in pixels; () where nobody knows."""
    found = tuple(call.get(side) or own_size(artifact) for side in SIDES)
    return found if all(isinstance(side, int) and side for side in found) else ()
