"""How many of the steps that are asked for both sides of a comparison run, where they are given images: a strength leaves some out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.pipelines.call_arguments import STEPS, call_arguments
from compress.pipelines.image_inputs import STRENGTH, strength_of
from compress.pipelines.index import class_of
from compress.planning.calls import planned_calls
from compress.planning.hooked_calls import steps_called
from compress.recipe.values import Recipe

if TYPE_CHECKING:
    from compress.planning.nodes import Node


@dataclass(frozen=True)
class Left:
    """What a strength leaves of the steps of a call: how many are asked for, and how many run."""

    strength: float
    asked: int
    run: int


def steps_left(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> dict[str, Left]:
    """By side, what is left of its steps; {} where pipelines have no strength, or nobody knows how many steps there are."""
    if STRENGTH not in (call_arguments(class_of(source.path)) or {}):
        return {}
    calls = zip(("baseline", "candidate"), planned_calls(recipe, source, nodes), strict=True)
    found = {side: _left(source, call) for side, call in (calls if nodes else list(calls)[:1])}
    return {side: left for side, left in found.items() if left}


def _left(source: Artifact, call: Mapping[str, Any]) -> Left | None:
    takes = call_arguments(class_of(source.path)) or {}
    asked = call.get(STEPS, takes.get(STEPS))
    return Left(strength_of(source, call, takes), asked, steps_called(source, call)) if isinstance(asked, int) else None


def in_words(found: Mapping[str, Left]) -> str:
    """The same in words; "" where all steps run."""
    parts, before = list[str](), None
    for side, one in found.items():
        if one.run == one.asked:
            continue
        again = one.strength == before
        head, tail = ("", "") if again else (f"strength {one.strength:g} leaves ", " steps to run")
        parts.append(f"{head}{one.run} of the {side}'s {one.asked}{tail}")
        before = one.strength
    return ", and ".join(parts)
