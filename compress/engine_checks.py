"""What a plan finds wrong with measuring the engines that it builds: whether they run here, and at the sizes asked for."""

from __future__ import annotations

from collections.abc import Iterator

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.errors import Problem
from compress.graphs import Profile
from compress.recipe import EvalSpec, Recipe, StepSpec


def engine_problems(recipe: Recipe, artifact: Artifact, idle: str) -> list[Problem]:
    """What keeps the candidate from being measured as the recipe asks.

    Args:
        artifact: the source model.
        idle: why the candidate cannot run on this machine, or "".
    """
    metrics = list(recipe.evaluate.metrics)
    running = [name for name in metrics if name != "size"]
    if running and idle:
        place = recipe.place.get(f"evaluate.metrics.{metrics.index(running[0])}", recipe.place.get("evaluate", ""))
        what = f"{', '.join(running)} need{'s' * (len(running) == 1)} the model to run"
        return [Problem(place, f"{what}, and {idle}", "evaluate.metrics: [size], or run the recipe where it can")]
    profiles = [(step, step.params.profile) for step in recipe.stages if hasattr(step.params, "profile")]
    return [p for step, profile in profiles for p in _outside(recipe, artifact, step, profile)]


def _outside(recipe: Recipe, artifact: Artifact, step: StepSpec, profile: Profile) -> Iterator[Problem]:
    """The sizes that the evaluation calls the model with, and that its profile leaves out."""
    for name, wanted in _sizes(recipe.evaluate, artifact).items():
        axis = "tokens" if name not in ("batch", "timing_batch") else "batch"
        low, usual, high = getattr(profile, axis)
        if low <= wanted <= high:
            continue
        place = recipe.place.get(f"evaluate.{name}", step.place)
        wide = [min(low, wanted), usual, max(high, wanted)]
        yield Problem(
            place,
            f"evaluate.{name} makes calls of {wanted}, and the profile of {step.id} takes {axis} from {low} to {high}",
            f"{step.stage}: {{profile: {{{axis}: {wide}}}}}, or another evaluate.{name}",
        )


def _sizes(spec: EvalSpec, artifact: Artifact) -> dict[str, int]:
    """By the name of the setting that decides it, the largest size of a call."""
    needs = frozenset(need for name in spec.metrics for need in find_metric(name).needs)
    sizes = {}
    if needs & {"pictures", "documents", "completions"}:
        sizes["batch"] = spec.batch
    if needs & {"timings", "starts"}:
        sizes["timing_batch"] = spec.timing_batch
        if artifact.task == "text_generation":
            sizes["new_tokens"] = spec.prompt_tokens + spec.new_tokens
    return sizes
