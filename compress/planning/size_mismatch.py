"""Sizes of images that may not have been meant: two sides of a comparison that generate different ones, of which neither images nor speeds
are alike, and a stage that asks for the one that there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.errors import Problem
from compress.pipelines.image_sizes import SIDES, own_size
from compress.planning.calls import baseline_call, planned_calls
from compress.recipe.values import Recipe

if TYPE_CHECKING:
    from compress.planning.nodes import Node

SIZE = "accelerate.size"


def sizes_apart(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> Iterator[str]:
    """That a recipe's baseline and its candidate generate different sizes, with what to write instead."""
    if (message := _message(recipe, source, nodes)) and not list(pixels_apart(recipe, source, nodes)):
        yield f"{message[0]}, which no metric tells from better or worse: {message[1]}"


def sizes_kept(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> Iterator[str]:
    """Stages that set the size which is generated without them too, by the model that they are given and by the baseline."""
    known = {node.id: node.expected for node in nodes}
    baseline = _size(source, baseline_call(source, recipe.evaluate.baseline))
    for node in nodes:
        if node.stage.name != SIZE:
            continue
        given = known.get(node.after, source)
        own, asked = given.settings.call, node.expected.settings.call
        # What is set beside the size keeps FLUX Kontext from resizing it, and makes that another size after all.
        beside = {name: value for name, value in asked.items() if name not in SIDES}
        if baseline == _size(given, own) == _size(given, asked) and beside.items() <= own.items():
            height, width = baseline
            yield f"{node.id}: images {width} wide and {height} high are what the model generates as it is: this saves nothing"


def pixels_apart(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> Iterator[Problem]:
    """Metrics that hold an image against the baseline's own pixel by pixel, where the two are of different sizes."""
    metrics = [find_metric(name) for name in recipe.evaluate.metrics]
    paired = [one.name for one in metrics if one.own and "images" in one.needs]
    if paired and (message := _message(recipe, source, nodes)):
        compare = "compare" if len(paired) > 1 else "compares"
        index = list(recipe.evaluate.metrics).index(paired[0])
        place = recipe.place.get(f"evaluate.metrics.{index}", recipe.place.get("evaluate.metrics", ""))
        yield Problem(place, f"{', '.join(paired)} {compare} images pixel by pixel, and {message[0]}", message[1])


def _message(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> tuple[str, str] | None:
    """In words, that baseline and candidate generate different sizes, and what to write; None where they do not."""
    baseline, candidate = (_size(source, call) for call in planned_calls(recipe, source, nodes))
    if not baseline or not candidate or baseline == candidate:
        return None
    (height, width), (high, wide) = baseline, candidate
    message = (
        f"the baseline generates images {width} wide and {height} high, and the candidate {wide} wide and {high} high"
    )
    return message, f"write height: {high} and width: {wide} under evaluate.baseline to compare like with like"


def _size(artifact: Artifact, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Height and width of what a call generates, in pixels; () where nobody knows."""
    found = tuple(call.get(side) or own_size(artifact) for side in SIDES)
    return found if all(isinstance(side, int) and side for side in found) else ()
