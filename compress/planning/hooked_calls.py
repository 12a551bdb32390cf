"""What settings hooked into a denoiser have nothing to do in, of the arguments that a pipeline will be called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import Artifact
from compress.model.hook_settings import INTERVAL, STEP_CACHE
from compress.pipelines.call_arguments import GUIDANCE, STEPS, call_arguments
from compress.pipelines.guided_calls import unguided
from compress.pipelines.image_inputs import steps_run, strength_of
from compress.pipelines.index import class_of
from compress.tasks import Fault

LEAVE = "or leave the stage out"


def hook_faults(artifact: Artifact, call: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings of an artifact's denoiser that a call gives nothing to do.

    Args:
        call: all of its arguments, the artifact's own too.
    """
    hooks = {one.name: one.params for one in artifact.settings.hook}
    steps = steps_called(artifact, call)
    if INTERVAL in hooks:
        start, stop = (float(hooks[INTERVAL][side]) for side in ("start", "stop"))
        if why := unguided(artifact, call):
            yield Fault(GUIDANCE, f"{INTERVAL} has no guidance to leave out: {why}", f"give more guidance, {LEAVE}")
        elif steps and (within := sum(start * steps <= at < stop * steps for at in range(steps))) in (0, steps):
            message = f"{'none' if not within else 'each'} of {steps} step{'s' * (steps > 1)} lies within {start:g} to {stop:g}"
            yield Fault(STEPS, f"{INTERVAL}: {message}", f"give more steps or another interval, {LEAVE}")
    if STEP_CACHE in hooks and steps and (why := _reuses_nothing(hooks[STEP_CACHE], steps)):
        yield Fault(STEPS, f"{STEP_CACHE}: {why}", f"give more steps, {LEAVE}")


def _reuses_nothing(params: Mapping[str, Any], steps: int) -> str:
    """Why a cache of steps has none to reuse in so many, or ""."""
    if steps == 1:
        return "one step is run, and there is none to reuse"
    whole = int(params.get("warmup", 0)) or int(float(params.get("retain", 0)) * steps + 0.5)
    return f"all blocks run at each of {steps} steps, as at the first {whole}" if whole >= steps else ""


def steps_called(artifact: Artifact, call: Mapping[str, Any]) -> int:
    """How many steps a call runs; 0 where nobody says."""
    kind = class_of(artifact.path)
    takes = call_arguments(kind) or {}
    asked = call.get(STEPS, takes.get(STEPS))
    return steps_run(kind, asked, strength_of(artifact, call, takes)) if isinstance(asked, int) else 0
