"""What is looked at of two sides before they are compared: what keeps one from being opened or called, and what a reader must know of how
they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.artifact import Artifact
from compress.commands.wanted import Wanted
from compress.data.items import Data
from compress.errors import Problem
from compress.machine.devices import Opening
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.image_inputs import strength_of
from compress.pipelines.index import class_of
from compress.pipelines.index_checks import sampled_otherwise
from compress.planning.calls import Call, baseline_call, call_beside, lineage_since
from compress.planning.evaluation_checks import beyond_training, too_long
from compress.planning.step_checks import source_problems
from compress.recipe.values import EvalSpec


def side_problems(sides: Sequence[Artifact], wanted: Wanted, opening: Opening) -> Iterator[Problem]:
    """Why the sides cannot be opened, called as they will be, or write as much as they are to."""
    yield from _shut(sides, wanted.spec, opening)
    yield from _long(sides, wanted)


def side_cautions(sides: Sequence[Artifact], wanted: Wanted, data: Data | None) -> Iterator[tuple[str, str]]:
    """What of the sides a reader must know, in words, each after the side's path."""
    yield from _far(sides, wanted)
    yield from _of_other_strengths(sides, wanted.spec)
    if data is None:  # two folders of images, each with its own captions
        yield from _apart(sides)
    yield from _sampled_otherwise(sides)


def _shut(sides: Sequence[Artifact], spec: EvalSpec, opening: Opening) -> tuple[Problem, ...]:
    """What keeps the sides from being opened, or called as they will be."""
    found = [
        p
        for side, call in _calls(sides, spec)
        if side.components
        for p in source_problems(side, opening, str(side.path), call=call)
    ]
    return tuple(dict.fromkeys(found))


def _long(sides: Sequence[Artifact], wanted: Wanted) -> Iterator[Problem]:
    """Sides whose positions do not reach as far as they are to write."""
    for side in sides:
        if side.components and (why := too_long(side, wanted.spec, wanted.metrics)):
            yield Problem(str(side.path), why, "ask for fewer: spec=EvalSpec(prompt_tokens=…, new_tokens=…)")


def _far(sides: Sequence[Artifact], wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Sides that are to write further than they were trained to, and that in words."""
    for side in sides:
        if side.components and (message := beyond_training(side, wanted.spec, wanted.metrics)):
            yield str(side.path), message


def _of_other_strengths(sides: Sequence[Artifact], spec: EvalSpec) -> Iterator[tuple[str, str]]:
    """That what two pipelines are given is changed by one more than by the other, in words."""
    if not all(side.components for side in sides):
        return
    calls = _calls(sides, spec)
    one, other = (strength_of(side, call, call_arguments(class_of(side.path)) or {}) for side, call in calls)
    if one != other:
        fix = "a recipe with evaluate.baseline.strength compares them at one"
        yield str(sides[0].path), f"it is called with strength {one:g}, and the baseline with {other:g}: {fix}"


def _calls(sides: Sequence[Artifact], spec: EvalSpec) -> tuple[tuple[Artifact, Call], ...]:
    """The two sides, each with the arguments that it will be called with."""
    candidate, baseline = sides
    base = baseline_call(baseline, spec.baseline)
    return (candidate, call_beside(candidate, lineage_since(candidate, baseline), baseline, base)), (baseline, base)


def _apart(sides: Sequence[Artifact]) -> Iterator[tuple[str, str]]:
    """What is not alike in two folders of images."""
    from evaluation.preflight.image_folders import ill_paired, is_folder

    if all(map(is_folder, sides)) and (message := ill_paired(*(side.path for side in reversed(sides)))):
        yield str(sides[0].path), message


def _sampled_otherwise(sides: Sequence[Artifact]) -> Iterator[tuple[str, str]]:
    """Sides whose scheduler has settings that the class they name does not take."""
    for side in sides:
        if side.components and (message := sampled_otherwise(side)):
            yield str(side.path), message
