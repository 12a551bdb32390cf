"""What a plan finds wrong with measuring the engines that it builds: whether they run here, and at the sizes asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compress.artifact import Artifact
from compress.catalogue import Stage, find_metric, find_task
from compress.errors import Problem
from compress.model.exportable import Batches
from compress.recipe.values import EvalSpec, Recipe, StepSpec
from compress.tasks import COST, OF_ITEMS, Size


def engine_problems(recipe: Recipe, artifact: Artifact, stages: Mapping[str, Stage], unavailable: str) -> list[Problem]:
    """What keeps the candidate from being measured as the recipe asks.

    Args:
        artifact: the source model.
        stages: by the id of the step; a step with problems of its own has none.
        unavailable: why the candidate cannot run on this machine, or "".
    """
    metrics = list(recipe.evaluate.metrics)
    running = [name for name in metrics if name != "size"]
    if running and unavailable:
        place = recipe.place.get(f"evaluate.metrics.{metrics.index(running[0])}", recipe.place.get("evaluate", ""))
        what = f"{', '.join(running)} need{'s' * (len(running) == 1)} the model to run"
        return [
            Problem(place, f"{what}, and {unavailable}", "evaluate.metrics: [size], or run the recipe where it can")
        ]
    known = [(step, stages[step.id]) for step in recipe.stages if step.id in stages]
    profiles = [(step, profile) for step, stage in known if (profile := _profile(step, stage))]
    return [p for step, profile in profiles for p in _outside(recipe, artifact, step, profile)]


def _profile(step: StepSpec, stage: Stage) -> Batches | None:
    """The sizes that a step builds an engine for, or lets another stage build one for; None where it takes any."""
    called = stage.calls(step.params)
    known = any("profile" in s.params.model_fields for s in called) or not called
    return getattr(step.params, "profile", None) if known else None


def _outside(recipe: Recipe, artifact: Artifact, step: StepSpec, profile: Batches) -> Iterator[Problem]:
    """The sizes that the evaluation calls the model with, and that its profile leaves out."""
    decided = any(one.if_faster for one in recipe.stages)
    for name, size in _sizes(recipe.evaluate, artifact, decided).items():
        if profile.nearest(size.axis, size.count) == size.count:
            continue
        low, usual, high = getattr(profile, size.axis)
        place = recipe.place.get(f"evaluate.{name}", step.place)
        wide = [min(low, size.count), usual, max(high, size.count)]
        yield Problem(
            place,
            f"evaluate.{name} makes calls of {size.count}, and the profile of {step.id} takes {size.axis} from {low} to {high}",
            f"{step.stage}: {{profile: {{{size.axis}: {wide}}}}}, or another evaluate.{name}",
        )


def _sizes(spec: EvalSpec, artifact: Artifact, decided: bool = False) -> dict[str, Size]:
    """By the name of the setting that decides it, the size of a call; decided: whether some are timed to decide about a step."""
    needs = frozenset(need for name in spec.metrics for need in find_metric(name).needs)
    sizes: dict[str, Size] = {}
    if needs & OF_ITEMS:
        items = spec.samples * find_task(artifact.task).repeats(spec)
        sizes["batch"] = Size("batch", min(spec.batch, items))
        if rest := items % spec.batch:
            sizes["samples"] = Size("batch", rest)  # the last call
    if decided or needs & COST - {"files"}:
        sizes["timing_batch"] = Size("batch", spec.timing_batch)
        sizes |= find_task(artifact.task).sizes(spec)
    return sizes
