"""A step that says `keep: if_faster`, known before it runs and after: what keeps it from that, the decision's key, and its words in a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import Stage, find_task
from compress.errors import Problem
from compress.files.hashing import digest_json
from compress.machine.devices import Opening
from compress.machine.facts import machine_fact
from compress.recipe.keep import IF_FASTER, KEEP
from compress.store.cache import Cache

if TYPE_CHECKING:
    from compress.recipe.values import Recipe, StepSpec


FORMAT = 1  # of a decision, and of how it is made


KEPT, WHY = "kept", "decision"  # among a step's facts


MOST = 32  # models that a chain may leave, one for each outcome of the steps that are kept only if faster


PLANNED = "kept only if it is faster here"


def problems(recipe: Recipe, step: StepSpec, stage: Stage, artifact: Artifact, unavailable: str) -> Iterator[Problem]:
    """Why a step cannot be kept only if it is faster.

    Args:
        unavailable: why what it leaves cannot run on this machine, or "".
    """
    touched = stage.touches(artifact, step.params)
    parts = {name: artifact.components[name].format for name in touched if name in artifact.components}
    place = recipe.place.get(f"stages.{recipe.stages.index(step)}.{KEEP}", step.place)
    changed = [name for name, format in parts.items() if stage.leaves(format) != format]
    if stage.effects == {"files"}:
        message = f"{stage.name} changes nothing that could make the model faster"
        yield Problem(place, message, f"remove `{KEEP}`")
    elif changed:
        message = f"{stage.name} makes another format of {', '.join(f'`{name}`' for name in changed)}"
        fix = f"remove `{KEEP}`; build.fastest keeps the fastest engine, torch among them"
        yield Problem(place, f"{message}, and {KEEP}: {IF_FASTER} is for stages that keep formats", fix)
    elif unavailable:
        message = f"{KEEP}: {IF_FASTER} has to run what {stage.name} leaves, and {unavailable}"
        yield Problem(place, message, f"remove `{KEEP}`, or run the recipe where it can")


def decision_key(made: str, given: str, source: str, original: Artifact, recipe: Recipe, opening: Opening) -> str:
    """The key of a decision: everything that decides the calls that are timed, and the machine.

    Args:
        made, given, source: the keys of the stage's own result, of what it was given, and of the model that the recipe names,
            which is `original`.
    """
    spec, known = recipe.evaluate, find_task(original.task)
    sizes = {name: [size.axis, size.count] for name, size in known.sizes(spec).items()}
    asked = known.asked(spec.baseline, original.settings.call)
    called = [asked, spec.baseline.dtype, spec.timing_batch, spec.timing_blocks, spec.seed, sizes]
    kinds = ("processors", *(("gpu",) if opening.device != "cpu" else ()))
    machine = {kind: machine_fact(kind) for kind in kinds}
    return digest_json([IF_FASTER, FORMAT, made, given, source, called, machine, opening.device])


def too_many(recipe: Recipe, step: StepSpec, models: int) -> list[Problem]:
    """That the steps so far could leave more different models than a plan looks at."""
    if 1 + models <= MOST:
        return []
    place = recipe.place.get(f"stages.{recipe.stages.index(step)}.{KEEP}", step.place)
    message = f"{KEEP}: {IF_FASTER} of so many steps makes more than {MOST} models of a recipe, each to be planned"
    return [Problem(place, message, f"remove `{KEEP}` where the gain is certain")]


def reported(cache: Cache, key: str) -> str:
    """What a plan says of the decision: how it fell, where it has."""
    if not cache.has(key):
        return PLANNED
    return str(cache.facts(key).get("notes", {}).get(WHY, PLANNED))


def timed_as(stage: Stage, if_faster: bool) -> str:
    """The name that a step's seconds are remembered by: with the timing it takes longer."""
    return f"{stage.name} {IF_FASTER}" if if_faster else stage.name


def dropped(stages: tuple[Mapping[str, Any], ...]) -> dict[str, str]:
    """Of a run's stages those that were not kept, by id, and why."""
    return {str(row["id"]): str(row["facts"][WHY]) for row in stages if row.get("facts", {}).get(KEPT) is False}


def decisions(stages: tuple[Mapping[str, Any], ...]) -> tuple[str, ...]:
    """A line for each stage of a run that was to be kept only if faster."""
    return tuple(f"{row['id']}: {row['facts'][WHY]}" for row in stages if WHY in row.get("facts", {}))
