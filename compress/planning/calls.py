"""How a model is called when it is measured: the baseline as a recipe says, and what is made of it beside that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_stage, find_task, stage_names
from compress.errors import Problem
from compress.pipelines.lean import lean_faults
from compress.planning.hooked_calls import hook_faults
from compress.recipe.values import BaselineSpec, Recipe
from compress.tasks import Fault

if TYPE_CHECKING:
    from compress.planning.nodes import Node

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A stage that an artifact went through since the baseline: its name and its parameters."""

    stage: str
    params: Mapping[str, Any]


def baseline_call(baseline: Artifact, spec: BaselineSpec) -> dict[str, Any]:
    """The baseline's arguments: as the recipe says, else as its own artifact does."""
    return {**baseline.settings.call, **find_task(baseline.task).asked(spec, baseline.settings.call)}


def lineage_since(artifact: Artifact, baseline: Artifact) -> tuple[Made, ...]:
    """The stages that an artifact went through behind those of the baseline."""
    return tuple(Made(p.stage, p.params) for p in artifact.lineage[len(baseline.lineage) :])


def call_beside(artifact: Artifact, made: Iterable[Made], baseline: Artifact, call: Call) -> dict[str, Any]:
    """The arguments of an artifact that stands beside a baseline which is called with `call`.

    What it is meant to be called with wins over whatever the recipe says of the baseline: a student taught to generate in four
    steps without guidance does so. What it took over from the original unchanged, and what it leaves open, goes as there.
    """
    original, meant = baseline.settings.call, artifact.settings.call
    called = find_task(artifact.task).arguments(original)
    set_, within = _message(made, called)
    own = {n: v for n, v in meant.items() if n in set_ or n not in original or original[n] != v}
    # What a stage wrote into the model's files, as a scheduler, is no argument any more: the baseline's would undo it.
    shared = {n: v for n, v in call.items() if n in called.values() and (n in meant or n not in within)}
    return {**meant, **shared, **own}


def _message(made: Iterable[Made], called: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """The arguments of a call that stages have parameters for, also where they set the very value that the original had; and
    those of them that were given a value."""
    known = (one for one in made if one.stage in stage_names() and "settings" in find_stage(one.stage).effects)
    params = [(called[word], value) for one in known for word, value in one.params.items() if word in called]
    return {name for name, _ in params}, {name for name, value in params if value is not None}


def call_problems(artifact: Artifact, call: Call, places: Mapping[str, str], place: str) -> Iterator[Problem]:
    """What a model cannot take of the arguments that it will be called with.

    Args:
        call: all of them, its own too.
        places: of arguments, where a recipe gives them; `place` is that of the others.
    """
    for fault in _faults(artifact, call):
        yield Problem(places.get(fault.argument) or place, fault.message, fault.fix)


def _faults(artifact: Artifact, call: Call) -> Iterator[Fault]:
    yield from find_task(artifact.task).calls(artifact, call)
    yield from lean_faults(artifact, call)
    yield from hook_faults(artifact, call)


def asked_places(recipe: Recipe, source: Artifact) -> dict[str, str]:
    """By argument, where `evaluate.baseline` gives it."""
    arguments = find_task(source.task).arguments(source.settings.call)
    named = {argument: f"evaluate.baseline.{name}" for name, argument in arguments.items()}
    return {argument: recipe.place[path] for argument, path in named.items() if path in recipe.place}


def candidate_problems(
    recipe: Recipe, source: Artifact, nodes: Sequence[Node], who: str = "the candidate"
) -> Iterator[Problem]:
    """What the model that the last node leaves cannot take of its call, most of which it has from the baseline, though that can."""
    chain = _chain(nodes)
    candidate, asked = chain[-1].expected, asked_places(recipe, source)
    base, call = planned_calls(recipe, source, nodes)
    places = {name: place for name, place in asked.items() if call.get(name) == base.get(name)}  # else a stage set it
    reported = {fault.message for fault in _faults(source, base)}
    for problem in call_problems(candidate, call, places, chain[-1].place):
        if problem.message not in reported:
            yield Problem(problem.place, f"{who}: {problem.message}", problem.fix)


def planned_calls(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> tuple[Call, Call]:
    """The arguments of the baseline and of the candidate."""
    base = baseline_call(source, recipe.evaluate.baseline)
    if not nodes:
        return base, base
    chain = _chain(nodes)
    made = [Made(node.stage.name, node.params.counted()) for node in chain]
    return base, call_beside(chain[-1].expected, made, source, base)


def _chain(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that lead to the last one, in order."""
    by_id, found, at = {node.id: node for node in nodes}, [], nodes[-1].id
    while at in by_id:
        found.append(by_id[at])
        at = by_id[at].after
    return found[::-1]
