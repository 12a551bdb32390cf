"""A recipe's controls: the models that other branches leave, plain competitors of the candidate. What they are held to, and what
keeps a step from being one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.errors import Problem
from compress.planning.calls import candidate_problems
from compress.recipe.controls import naming_problems
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec, Recipe

if TYPE_CHECKING:
    from compress.planning.nodes import Node

SPEEDS = ("ms", "/s")  # units of what is a speed; energy is timed beside it and is none


def speed_metric(spec: EvalSpec, gates: Mapping[str, Gate]) -> str:
    """The time or rate that the recipe gates, else the first it measures, else ""."""
    timed = [name for name in spec.metrics if find_metric(name).unit in SPEEDS]
    return next((name for name in timed if name in gates), timed[0] if timed else "")


def held_to(spec: EvalSpec, gates: Mapping[str, Gate]) -> tuple[str, ...]:
    """The metrics that a control is measured by: all that are gated, and a speed."""
    speed = speed_metric(spec, gates)
    return tuple(name for name in spec.metrics if name in gates or name == speed)


def control_problems(recipe: Recipe, source: Artifact | None, nodes: Sequence[Node]) -> Iterator[Problem]:
    """What keeps the controls of a recipe from standing beside its candidate.

    Args:
        nodes: the steps that have no problems of their own.
    """
    controls = recipe.evaluate.controls
    whole = recipe.place.get("evaluate.controls", recipe.place.get("evaluate", ""))
    places = [recipe.place.get(f"evaluate.controls.{index}", whole) for index in range(len(controls))]
    named = tuple(zip(controls, places, strict=True))
    yield from naming_problems(named, [step.id for step in recipe.stages])
    held = held_to(recipe.evaluate, recipe.gates)
    if named and not held:
        message = "controls: no metric is gated and none is a speed, so that there is nothing to hold a control to"
        yield Problem(whole, message, "give a gate, or add latency to evaluate.metrics")
    index_of = {node.id: index for index, node in enumerate(nodes)}
    running = [name for name in held if name != "size"]
    for name, place in named:
        if source is None or name not in index_of:
            continue
        until = nodes[: index_of[name] + 1]
        if running and (unavailable := until[-1].unavailable):
            message = f"control `{name}`: {', '.join(running)} need{'s' * (len(running) == 1)} the model to run, and {unavailable}"
            yield Problem(place, message, "take it out of evaluate.controls, or run the recipe where it can")
        yield from candidate_problems(recipe, source, until, f"the control `{name}`")
