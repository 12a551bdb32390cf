"""Generate in fewer denoising steps, if need be with a scheduler that makes more of each.

Use it first: it costs no training, multiplies with every other saving, and is the control that any cleverer method must beat.
Source: the schedulers of diffusers; Song et al., "Denoising Diffusion Implicit Models" (2020); Lu et al., "DPM-Solver++" (2022);
Zhao et al., "UniPC" (2023).

    - accelerate.steps: {steps: 8, scheduler: dpm-solver++}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.artifact import SCHEDULER, SCHEDULER_CONFIG, Artifact, derive, write_manifest
from compress.catalogue import Forecast
from compress.context import Context
from compress.distillation.students import undone
from compress.errors import Refusal, StageFailed
from compress.params import Params
from compress.pipelines.index import class_of
from compress.pipelines.schedulers import (
    NAMED,
    Named,
    changes,
    config_of,
    faults,
    foreign,
    left_out,
    read_class,
    reported,
)
from compress.stages.accelerate import call_stage

if TYPE_CHECKING:
    import diffusers
    import torch


class Steps(Params):
    steps: int = Field(ge=1, le=1000, description="denoising steps of each image")
    scheduler: Named | None = Field(None, description="the scheduler to use instead of the model's own")
    spacing: Literal["leading", "linspace", "trailing"] | None = Field(
        None,
        description="how the steps lie on the training schedule; trailing starts from pure noise, which few steps need",
    )


def refuse(artifact: Artifact, params: Steps) -> str:
    config = config_of(artifact)
    if not config:
        return ""
    why = foreign(config, params.scheduler) if params.scheduler else ""
    if why := why or _unspaced(config, params):
        return why
    pipeline = class_of(artifact.path)
    before = {
        problem.message for problem in faults(config, "")
    }  # of the model as it is, which is refused for it already
    found = faults({**config, **changed_by(config, params)}, "", params.steps, pipeline)
    return next((Refusal(new.message, new.fix) for new in found if new.message not in before), "")


def _unspaced(config: Mapping[str, Any], params: Steps) -> str:
    """Why a spacing would change nothing, or ""."""
    kind = str(changes(config, params.scheduler)["_class_name"])
    known = read_class(kind)
    if params.spacing and known and not known.spaced:
        return Refusal(f"{kind} spaces its steps itself", "leave `spacing` out")
    if params.spacing and config.get("use_flow_sigmas"):
        return Refusal(f"{kind} with use_flow_sigmas spaces its steps itself", "leave `spacing` out")
    return ""


def changed_by(config: Mapping[str, Any], params: Steps) -> dict[str, Any]:
    """The settings of a scheduler that come out otherwise, its class among them."""
    return changes(config, params.scheduler) | ({"timestep_spacing": params.spacing} if params.spacing else {})


def forecast(artifact: Artifact, params: Steps) -> Forecast:
    config, settings = config_of(artifact), artifact.calling(num_inference_steps=params.steps).settings
    lost = undone(artifact, params.steps, params.scheduler, params.spacing)
    warnings = (lost,) if lost else ()
    if not config:
        return Forecast(settings=settings, warnings=warnings)
    changed = changed_by(config, params)
    reported = _reported(config, params)
    return Forecast(configs={SCHEDULER: {**config, **changed}}, reported=reported, settings=settings, warnings=warnings)


def _reported(config: Mapping[str, Any], params: Steps) -> str:
    return f"{params.steps} step{'s' * (params.steps > 1)} of {reported(config, changed_by(config, params))}"


@call_stage(version=2, params=Steps, lossy=True, refuse=refuse, forecast=forecast)
def run(artifact: Artifact, params: Steps, context: Context) -> None:
    from compress.engines.torch.runtime import silent_libraries
    from compress.opening.schedulers import made, put

    left = derive(artifact, context.out, without=(SCHEDULER_CONFIG,), link=context.link)
    config = config_of(artifact)
    changed = changed_by(config, params)
    scheduler = made(config, changed, artifact.path)
    with silent_libraries():
        _try_steps(scheduler, params.steps)
    put(scheduler, context.out)
    kind = changed.pop("_class_name")
    context.note(_reported(config, params), scheduler=kind, settings=changed, left_out=list(left_out(config, kind)))
    write_manifest(left.calling(num_inference_steps=params.steps))


def _try_steps(scheduler: diffusers.SchedulerMixin, steps: int) -> None:
    """Walk the whole schedule once, on a latent of four numbers: what fails here would fail at each image."""
    import torch

    kind = type(scheduler).__name__
    # FLUX shifts its schedule by the image's size, which the pipeline tells at each call; any size will do here.
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(steps, **shift)
        sample = _walked(scheduler) if _walks_by_itself(scheduler) else torch.zeros(1)
    except Exception as error:  # whatever a scheduler raises on the way: its settings are at fault
        raise StageFailed(
            f"{kind} cannot do {steps} steps: {error}", fix="ask for another number, or name another `scheduler`"
        ) from error
    if not torch.isfinite(sample).all():
        raise StageFailed(
            f"{kind} makes values that are no numbers in {steps} steps: its settings do not go together",
            place=SCHEDULER_CONFIG,
            fix="name another `scheduler`, or change its settings in the model's folder",
        )


def _walks_by_itself(scheduler: diffusers.SchedulerMixin) -> bool:
    """Whether all that a step needs is a prediction: pipelines split a learned variance off in ways of their own."""
    known = type(scheduler).__name__ in NAMED.values()
    return known and "learned" not in str(scheduler.config.get("variance_type"))


def _walked(scheduler: Any) -> torch.Tensor:
    """Where a schedule leads from noise when what the model predicts is noise too."""
    import torch

    generator = torch.Generator().manual_seed(0)
    given = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    sample: torch.Tensor = torch.randn(1, 1, 2, 2, generator=generator) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        scheduler.scale_model_input(sample, time)  # which counts the steps
        sample = scheduler.step(torch.randn(sample.shape, generator=generator), time, sample, **given).prev_sample
    return sample
